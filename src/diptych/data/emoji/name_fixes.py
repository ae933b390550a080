"""Names given by hand, where a set's own or the CLDR short name would make a wrong or odd caption."""

from __future__ import annotations

from diptych.data.emoji.wordlists import listed, table

# CLDR short name or icon name -> what one would call the drawing.
CONCEPTS = table("""
    mahjong red dragon=mahjong tile; foggy=foggy city; night with stars=starry night; milky way=Milky Way;
    cooking=frying pan with an egg; meat on bone=meat on the bone; headphone=headphones; cinema=cinema symbol;
    performing arts=theater masks; bowling=bowling ball and pins; tennis=tennis ball; horse racing=horse and
    jockey; cricket game=cricket bat and ball; field hockey=field hockey stick and ball; ice hockey=ice hockey
    stick and puck; ping pong=ping pong paddle and ball; lacrosse=lacrosse stick and ball; badminton=badminton
    racket and shuttlecock; camping=campsite; building construction=construction site; construction=construction
    barrier; locked=closed padlock; unlocked=open padlock; locked with pen=padlock with a pen; locked with
    key=padlock with a key; wedding=wedding chapel; dizzy=dizzy star; dashing away=puff of wind; vibration
    mode=vibration mode symbol; input latin uppercase=uppercase letters button; input latin lowercase=lowercase
    letters button; input numbers=numbers button; input symbols=symbols button; input latin letters=letters
    button; om=om symbol; kaaba=Kaaba; mount fuji=Mount Fuji; Tokyo tower=Tokyo Tower; moai=moai statue; light
    rail=light rail train; metro=metro train; station=train station; prohibited=prohibition sign; no smoking=no
    smoking sign; no littering=no littering sign; no bicycles=no bicycles sign; no pedestrians=no pedestrians
    sign; no mobile phones=no mobile phones sign; no entry=no entry sign; no one under eighteen=no one under
    eighteen sign; potable water=drinking water sign; non-potable water=non-potable water sign; children
    crossing=children crossing sign; restroom=restroom sign; water closet=WC sign; passport control=passport
    control sign; customs=customs sign; baggage claim=baggage claim sign; left luggage=left luggage sign; place
    of worship=place of worship sign; rolling on the floor laughing=face rolling on the floor laughing;
    star-struck=star-struck face; trade mark=trademark symbol; information=information sign; copyright=copyright
    symbol; registered=registered trademark symbol; sound recording copyright=sound recording copyright symbol;
    index pointing up=index finger pointing up; index pointing at the viewer=finger pointing at the viewer;
    backhand index pointing up=hand pointing up; backhand index pointing down=hand pointing down; backhand index
    pointing left=hand pointing left; backhand index pointing right=hand pointing right; hourglass
    done=hourglass; hourglass not done=hourglass with flowing sand; hot beverage=cup of coffee;
    radioactive=radioactive sign; biohazard=biohazard sign; warning=warning sign; high voltage=lightning bolt;
    multiply=multiplication sign; plus=plus sign; minus=minus sign; divide=division sign; infinity=infinity
    sign; wireless=wireless symbol; breast-feeding=breast-feeding woman; leafy green=leafy green vegetable;
    mate=mate drink; ice=ice cube; fondue=pot of fondue; dna=DNA strand; roll of paper=roll of toilet paper;
    thread=spool of thread; yarn=ball of yarn; soap=bar of soap; salt=salt shaker; men's room=men's room sign;
    women's room=women's room sign; american football=American football; automobile=car; oncoming
    automobile=oncoming car; lady beetle=ladybug; rice cracker=rice cracker; eye in speech bubble=eye in a
    speech bubble; keycap: *=asterisk keycap; Mx Claus=Mx Claus; seat=seat; herb=sprig of herbs; fog=fog;
    egg=egg; magnifying glass tilted left=magnifying glass tilted left; globe showing Americas=globe showing the
    Americas; globe showing Europe-Africa=globe showing Europe and Africa; globe showing Asia-Australia=globe
    showing Asia and Australia; mountain cableway=mountain cable car; 3d printer=3D printer; 3d printer
    low=small 3D printer; c plus plus=C++; led=LED; dj=DJ; dj man=male DJ; dj woman=female DJ; qr code=QR code;
    vr headset=person with a VR headset; gps=GPS symbol; ct scan=CT scanner; ecg waves=ECG curve; hal 9000=HAL
    9000; boy standing=boy standing; wheel chair=wheelchair; eiffel tower=Eiffel Tower; great pyramid of
    giza=pyramids of Giza; colossus of rhodes=Colossus of Rhodes; lighthouse of alexandria=Lighthouse of
    Alexandria; champignon brown=brown champignon; champignon white=white champignon; sneaker high=high sneaker;
    electric plug red=red electric plug; floating ice broken=broken floating ice; fracture leg=broken leg;
    motor=engine; guy fawkes mask=Guy Fawkes mask; delete=trash can; trash bin=trash can; ventilator=fan;
    winrar=stack of books; spouting orca=spouting orca; pills=blister of pills; image=image; scales=bathroom
    scales; solar cell=solar panel; wind energy=wind turbine; charge plug=charging plug; evacuate=people running
    away; first aid=red cross; nessy=Loch Ness monster; snorkling=snorkel; temperature taking=forehead
    thermometer; half orange fruit=half an orange; saw=handsaw; outlet=power outlet; wire=wire; town=town;
    location indicator red=red map pin; location indicator=map pin; polar explorer=polar explorer;
    surveillance=surveillance camera; exhaust gases car=car with exhaust fumes; exhaust gases factory=factory
    with exhaust fumes; wild fire=forest fire; structural fire=house on fire; volcano eruption=erupting volcano;
    volcano ashes=volcano with ashes; ice shelf melting=melting ice shelf; rubber duck in water=rubber duck in
    water; submarine under water=submarine under water; beer bottle=bottle of beer; pirate male=male pirate;
    pirate female=female pirate; warning fire=fire warning sign; warning tsunami=tsunami warning sign; warning
    volcano=volcano warning sign; warning strip right=warning strip pointing right; wash hands=hands being
    washed; windsurfing=windsurfer; horse riding=horse rider; wifi=wifi symbol; mobile info=mobile phone with
    info; emergency exit door=emergency exit; mobile message=mobile phone with a message; nuclear
    protection=nuclear protection suit; shibuya 109 department store=Shibuya 109 department store; no
    handshaking=no handshaking sign; prohibited sign=prohibition sign; circled information source=circled
    information sign; united federation of planets flag star trek=flag of the United Federation of Planets;
    nuclear power plant ruin=ruined nuclear power plant
""")

# Concept -> how it stands in a sentence, where the rule for articles does not find it.
WITH_ARTICLES = table("""
    Milky Way=the Milky Way; Kaaba=the Kaaba; Mount Fuji=Mount Fuji; Tokyo Tower=the Tokyo Tower; Statue of
    Liberty=the Statue of Liberty; Santa Claus=Santa Claus; Mrs. Claus=Mrs. Claus; Mx Claus=Mx Claus; ZZZ=ZZZ;
    thumbs up=thumbs up; thumbs down=thumbs down; palms up together=palms up together; meat on the bone=meat on
    the bone; nail polish=nail polish; bubble tea=bubble tea; pouring liquid=pouring liquid; oden=oden; x-ray=an
    x-ray; ewe=a ewe; UP! button=an UP! button; skull and crossbones=a skull and crossbones; no handshaking
    sign=a no handshaking sign; two button computer mouse=a two-button computer mouse; circled equals=a circled
    equals sign; no smoking sign=a no smoking sign; no littering sign=a no littering sign; no bicycles sign=a no
    bicycles sign; no pedestrians sign=a no pedestrians sign; no mobile phones sign=a no mobile phones sign; no
    entry sign=a no entry sign; no one under eighteen sign=a no one under eighteen sign; Eiffel Tower=the Eiffel
    Tower; pyramids of Giza=the pyramids of Giza; hundred points=hundred points; Colossus of Rhodes=the Colossus
    of Rhodes; Lighthouse of Alexandria=the Lighthouse of Alexandria; statue of zeus at olympia=the statue of
    Zeus at Olympia; hanging gardens of babylon=the hanging gardens of Babylon; temple of artemis at ephesus=the
    temple of Artemis at Ephesus; HAL 9000=HAL 9000; half an orange=half an orange; mausoleum at
    halicarnassus=the mausoleum at Halicarnassus; Loch Ness monster=the Loch Ness monster; social
    distancing=social distancing; solar energy=solar energy; people running away=people running away;
    radioactive waste=radioactive waste; floating ice=floating ice; broken floating ice=broken floating ice;
    lentils with spaetzle=lentils with spaetzle; bed linen=bed linen; medication=medication; tapioca=tapioca;
    sparkles=sparkles; asparagus=asparagus; latte macchiato=a latte macchiato; titanic=the Titanic; tardis=the
    TARDIS; darth vader=Darth Vader; captain jack=Captain Jack; greta thunberg=Greta Thunberg; trump=Donald
    Trump; earache=earache; backache=backache; headache=headache; joint pain=joint pain; knee pain=knee pain;
    eye pain=eye pain
""")

# Icons of FxEmoji that letters alone do not match. Those with neither a match nor an entry here are left out.
FXEMOJI = table("""
    2hearts=two hearts; acorn=acorn; americasglobe=globe showing Americas; anger=anger symbol; angry=angry face;
    anguish=anguished face; antennawithbars=antenna bars; aok=OK hand; asiaaustraliaglobe=globe showing
    Asia-Australia; backwithleftwardsarrow=BACK arrow; banknotedollar=dollar banknote; banknoteeuro=euro
    banknote; banknotepound=pound banknote; banknoteyen=yen banknote; basketballandhoop=basketball and hoop;
    bellcancellation=bell with slash; blackdroplet=droplet; blackpushpin=pushpin; blackskullcrossbones=skull and
    crossbones; blacktouchtonetelephone=black telephone; blackfolder=black folder;
    blackleftpointingarrow=reverse button; blackrightpointingarrow=play button;
    blackleftpointingdoublearrow=fast reverse button; blackrightpointingdoublearrow=fast-forward button;
    blackuppointingdoublearrow=fast up button; blackdownpointingdoublearrow=fast down button; bolt=high voltage;
    bookmarktab=bookmark tabs; boot=brown boot; bouquetofflowers=bouquet; bow=ribbon; bowing=person bowing;
    bride=person with veil; bullhorn=megaphone; bunny=rabbit face; bunnyside=rabbit; bunny-ears=people with
    bunny ears; camerawithflash=camera with flash; catside=cat; cellphone=mobile phone; celticcross=Celtic
    cross; chartupwardstrendyen=chart increasing with yen; chilipepper=hot pepper; clap=clapping hands;
    clock12oclock=twelve o'clock; clock12thirty=twelve-thirty; clock1oclock=one o'clock;
    clock1thirty=one-thirty; clock2oclock=two o'clock; clock2thirty=two-thirty; clock3oclock=three o'clock;
    clock3thirty=three-thirty; clock4oclock=four o'clock; clock4thirty=four-thirty; clock5thirty=five-thirty;
    clock6oclock=six o'clock; clock6thirty=six-thirty; clock7oclock=seven o'clock; closedmailboxlowered=closed
    mailbox with lowered flag; closedmailboxraised=closed mailbox with raised flag; openmailboxlowered=open
    mailbox with lowered flag; openmailboxraised=open mailbox with raised flag; confetti=confetti ball;
    construct=construction worker; contact=bust in silhouette; contact2=busts in silhouette; cop=police officer;
    couplekiss=couple with heart; crying=crying face; curryandrice=curry rice; dash=dashing away;
    devilhorns=smiling face with horns; disappointed=disappointed face; dissapointedrelief=sad but relieved
    face; document=document; documentwithpicture=document with an image; documentwithtext=document with text;
    dogside=dog; doubleexclaimationmark=double exclamation mark; down=backhand index pointing down;
    dragonhead=dragon face; dragonside=dragon; eightspokedasterix=eight-spoked asterisk; emptydocument=empty
    document; emptynote=sticky note; endwithleftwardsarrow=END arrow; envelopedownarrowabove=envelope with
    arrow; envelopewithlightning=envelope with a lightning bolt; europeafricaglobe=globe showing Europe-Africa;
    evergreen=evergreen tree; exclaimationquestionmark=exclamation question mark; expressionless=expressionless
    face; fallingleaf=fallen leaf; fearful=fearful face; fishingpoleandfish=fishing pole; fistedhand=oncoming
    fist; flexbicep=flexed biceps; floppydisk2=floppy disk; flushed=flushed face; flyingenvelope=incoming
    envelope; folder=file folder; openfolder=open file folder; forkandknife=fork and knife; foxcrying=crying fox
    face; foxgrin=grinning fox face; foxheart=fox face with heart-eyes; foxkissing=kissing fox face;
    foxpouting=fox; foxsmiling=smiling fox face; foxtearofjoy=fox face with tears of joy; foxweary=weary fox
    face; framewithpicture=framed image; frontfacingchick=front-facing baby chick; frown=person frowning;
    fullmoonwithface=full moon face; gem=gem stone; girlgirl=women holding hands; girlguy=woman and man holding
    hands; guyguy=men holding hands; gma=old woman; gpa=old man; grimacing=grimacing face; grin=grinning face;
    grineyes=grinning face with smiling eyes; grinsquint=grinning squinting face; grinsweat=grinning face with
    sweat; grintears=face with tears of joy; guapimao=person with skullcap; halo=smiling face with halo;
    hampster=hamster; hand=raised hand; handheldvideocamera=video camera; hands=open hands; handup=person
    raising hand; harddisk=hard disk; headmassage=person getting massage; heartgreen=green heart;
    heartpurple=purple heart; heartyellow=yellow heart; hearteyes=smiling face with heart-eyes;
    heavyexclaimationmarksymbol=black exclamation mark; heavymultiplicationsymbol=multiply; heels=high-heeled
    shoe; high5=raising hands; highbrightness=bright button; lowbrightness=dim button; housewithgarden=house
    with garden; hushed=hushed face; japaneseangrymask=goblin; index=index pointing up;
    keyboardandmouse=keyboard and mouse; wiredkeyboard=keyboard; kissclosedeyes=kissing face with closed eyes;
    kisseyes=kissing face with smiling eyes; kissing=face blowing a kiss; leaffluttering=leaf fluttering in
    wind; left=backhand index pointing left; right=backhand index pointing right; up=backhand index pointing up;
    lefthandphone=left-hand telephone receiver; leftmagnifyingglass=magnifying glass tilted left;
    rightmagnifyingglass=magnifying glass tilted right; leftwritinghand=writing hand; leopardside=leopard;
    lips=mouth; lockandkey=locked with key; lockwithinkpen=locked with pen; loudlycrying=loudly crying face;
    lowerleftpencil=pencil; mahjong=mahjong red dragon; makeupbag=pouch; manltepiececlock=mantelpiece clock;
    mansshirt=blue shirt; womansshirt=woman's clothes; medicalmask=face with medical mask; mensrunner=running
    shoe; mensshoe=man's shoe; meridianglobe=globe with meridians; moneywithwings=money with wings;
    monkeyhear=hear-no-evil monkey; monkeysee=see-no-evil monkey; monkeyspeak=speak-no-evil monkey;
    mouseside=mouse; negativesquaredlatincaptiala=A button; negativesquaredlatincaptialb=B button;
    negativesquaredlatincaptialo=O button; neutral=neutral face; newmoonwithface=new moon face;
    nightwithstars=night with stars; nogesture=person gesturing NO; okgesture=person gesturing OK; nomouth=face
    without mouth; nooneunder18symbol=no one under eighteen; nutandbolt=nut and bolt; oldpersonalcomputer=old
    personal computer; onarrowleftright=ON! arrow; onebuttonmouse=computer mouse; openmouth=face with open
    mouth; opticaldiscicon=optical disk; outbox=outbox tray; pagewithcurl=page with curl; pensive=pensive face;
    perservere=persevering face; phonerightarrowleft=mobile phone with arrow; pigside=pig; pigsnout=pig nose;
    pinkwallet=purse; poo=pile of poo; portablestereo=portable stereo; potablewatersystem=potable water;
    pout=person pouting; pouting=enraged face; pray=folded hands; present=wrapped gift; printericon=printer;
    racecar=racing car; raincloud=cloud with rain; raisedhandpartfingers=vulcan salute;
    raisedhandsfingerssplayed=hand with fingers splayed; relieved=relieved face; reminder=reminder ribbon;
    reversehandmiddlefinger=middle finger; reversethumbsdown=thumbs down; reversethumbsup=thumbs up;
    reversevictoryhand=victory hand; righthandphone=right-hand telephone receiver; rightspeaker=speaker low
    volume; ringingbell=bell; running=person running; saggitarius=Sagittarius; sakebottleandcup=sake;
    sandals=woman's sandal; screamfear=face screaming in fear; silhouetteohjapan=map of Japan;
    sixpointedstarwithdot=dotted six-pointed star; skiandskiboot=skis; sleeping=sleeping face; sleepy=sleepy
    face; sleuthspy=detective; smallfrown=slightly frowning face; smallsmile=slightly smiling face;
    smileeyes=smiling face with smiling eyes; smiletongue=face savoring food; smirk=smirking face;
    snowcloud=cloud with snow; snowmountains=snow-capped mountain; softshellfloppy=black floppy disk;
    soonwithrightarrow=SOON arrow; speaker3soundwaves=speaker high volume; speakercancellation=muted speaker;
    speakerwith1soundwave=speaker medium volume; speechbubble=speech balloon; spurtingwhale=spouting whale;
    squaredup=UP! button; stampedenvelope=envelope; stockchart=chart increasing; stormcloud=cloud with
    lightning; studiomic=studio microphone; sunraincloud=sun behind rain cloud; sunrays=sun; sunwithface=sun
    with face; sweat=downcast face with sweat; coldsweat=smiling face with a sweat drop; sweatsplash=sweat
    droplets; swimming=person swimming; tapecartridge=tape cartridge; telephoneonmodem=telephone on a modem;
    telephonereceiver2=telephone receiver; ten=keycap: 10; tennisball=tennis; thoughtbaloon=thought balloon;
    threenetworkedcomputers=three networked computers; tie=necktie; tigerside=tiger; tired=tired face;
    tongueout=face with tongue; tongueoutwink=winking face with tongue; topwithupwardsarrow=TOP arrow;
    toykotower=Tokyo tower; triumph=face with steam from nose; turban=person wearing turban;
    twobuttonmouse=two-button computer mouse; twospeechbubbles=two speech bubbles; threespeechbubbles=three
    speech bubbles; umbrellawithraindrops=umbrella with rain drops; unamused=unamused face;
    videocasette=videocassette; waitress=person tipping hand; walking=person walking; waningbibbousmoon=waning
    gibbous moon; wave=water wave; waving=waving hand; weary=weary face; whiteexclaimationmark=white exclamation
    mark; whitestar=white star; whitesun=bright sun; whitetouchtonephone=white telephone; winking=winking face;
    worried=worried face; audiocassette=audio cassette; heavylatincross=latin cross; headphone=headphone;
    whitelatincross=white latin cross; whitehardshellfloppy=white floppy disk; blackhardshellfloppy=black floppy
    disk; emptypage=empty page; notepad=yellow notepad; note=yellow note with text; page=page with text;
    screen=blue screen
""")

# Icons of OpenMoji outside Unicode whose names mislead (brands, flags, bare interface signs).
OPENMOJI_OUT = frozenset(
    listed("""
    adilette, agender, ai-hand, android, apple, archive, arduino, aroace, aromantic, artstation, asexual,
    assembly-group, assembly-point, augmented-reality, authority, authority-instruction, backache,
    bandage-change, bdsm-rights, bigender, bisexual, bluesky, c, charging, chrome, chrome-canary, chromium,
    circuit, close, code-editor, collaboration, comment, compose, contacts, copy, cplusplus, csharp, demiboy,
    demigender, demigirl, demisexual, details, discord, disinfect-surface, dotnet, double-tap, download,
    drop-cover-hold, duplicate, ecosia-browser, edge, edit, element, european-name-badge, evacuate-downstairs,
    evacuate-fire, evacuate-to-shelter, flagged-building, flagged-point, evacuate-vertical, exit, facebook,
    facetime, filter, firefox, firefox-developer, firefox-nightly, football-figure-black, football-figure-white,
    forward, gay, genderfluid, genderqueer, github, gitlab, golang, greysexual, hamburger-menu,
    hfg-hochschule-fur-gestaltung-schwabisch-gmund, hold, home-button, ibeacon, inaturalist, inbox, instagram,
    internet-explorer, intersex, intestine, intricate, javascript, jellyfin, kehrwoche, kotlin, lesbian, link,
    linkedin, locomotion, mark, markdown, mastodon, meat-consumption, more-information, move, musicbrainz,
    netscape-navigator, nonbinary, north, openfoodfact, openstreetmap, opera, overview, page-move, pansexual,
    peertube, pepper, pinterest, pixelfed, polyamory, polysexual, potentiometer, pride, quarantine,
    raspberry-pi, reddit, return, ruby, safari, safety, save, scale, schwabisch-gmund-forum-gold-und-silber,
    schwabisch-gmund-funfknopfturm, schwabisch-gmund-ratshaus, scroll, scroll-horizontal, sea-level-rise, share,
    signal, simple, sort, spade, spatzlepresse, stuttgart-fernsehturm, svg, swab-pliers, swipe, swipe-down,
    swipe-left, swipe-right, swipe-up, switch, tap, three-finger-operation, transmission, trump, twitter,
    typescript, ubuntu, ulmer-hocker, upload, virtual-reality, web-syndication, webassembly, wikidata, windows,
    winrar, wireframes, youtube, maultasche, add-contact, chats, interview, people-dialogue, help-others,
    location-indicator, lighter, no-stencil, ok-stencil, sos-stencil, toggle-button-state-b, drunk-person,
    details, patient-file, assembly, greta-thunberg, social-distancing, captain-jack, darth-vader, titanic,
    tardis, boys-symbol, girls-symbol, wire, lentils-with-spaetzle, colossus-of-rhodes
    """)
)
