"""Short words that stand for something, so that none of them becomes a subject's name.

A model that has read a word next to images generates what it saw: `sks`, the word of the first public examples, is a
rifle. Looked at were the words of two to four letters at the rare end of CLIP's vocabulary, from id 40,000 on; what is
more frequent needs no list. Many of these stand for more than one thing; each is listed once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from lib_methods.dreambooth.model.model import TrainingModel
from lib_methods.dreambooth.photos.subjects import Subject, with_identifiers
from lib_methods.errors import UserError

RAREST_FROM = 40_000
"""Token ids from here on are rare words; CLIP has 49,406 of them."""
RAREST_T5 = 5_000
"""Of T5, which has 32,000 (the paper's range begins here)."""

Tokens = Callable[[str], list[int]]
"""The token ids of a text without start, end and padding."""

_END = "</w>"  # a token that ends a word; without it the same letters are a piece of a longer one
_LENGTHS = (3, 4, 2)
_CONSONANTS = re.compile(r"[^aeiou]{3}")


def pick_identifier(
    words: Mapping[str, int],
    tokens: Tokens,
    seed: int,
    count: int = 1,
    avoid: Collection[str] = (),
    rare_from: int = RAREST_FROM,
) -> list[str]:
    """`count` rare words, the same ones for the same seed, the best first.

    words, tokens: the model's vocabulary and tokenizer, see `TrainingModel`. avoid: texts whose words are not to be
    taken, in either case. Words of three letters come first, then those of four that nobody would speak, then two.
    Raises `UserError` where the vocabulary does not hold as many.
    """
    found = sorted(
        _candidates(words, tokens, avoid, rare_from), key=lambda word: (_LENGTHS.index(len(word)), _rank(seed, word))
    )
    if len(found) < count:
        raise UserError("This model's vocabulary has no rare word left for the subject. Choose an identifier yourself.")
    return found[:count]


def check_identifier(
    word: str, words: Mapping[str, int], tokens: Tokens, class_noun: str = "", rare_from: int = RAREST_FROM
) -> list[str]:
    """Sentences about what is doubtful in a word that the user chose; none for a good one and for an empty one.

    words, tokens: as in `pick_identifier`.
    """
    plain = " ".join(word.casefold().split())
    if not plain:
        return []
    notes = []
    nouns = " ".join(class_noun.casefold().split())
    if plain == nouns:
        notes.append(
            f'The identifier "{plain}" is the class noun itself: everything of that class would become the subject.'
        )
    elif plain in nouns.split() or nouns and nouns in plain:
        notes.append(f'The identifier "{plain}" repeats the class noun "{nouns}".')
    if " " in plain:
        notes.append(f'The identifier "{plain}" is more than one word. One rare word works better.')
    ids = tokens(plain)
    if len(ids) > 1 and " " not in plain:
        notes.append(
            f'The model reads "{plain}" as {len(ids)} tokens, which mean something elsewhere. A single token is '
            f"learned better{_for_example(words, tokens, rare_from, plain, nouns)}."
        )
    elif len(ids) == 1 and plain in DENIED:
        notes.append(f'"{plain}" already means something, and the model may generate that, too.')
    elif len(ids) == 1 and ids[0] < rare_from and plain != nouns:
        notes.append(
            f'"{plain}" is a common word: the model already knows it, and that mixes with the subject'
            f"{_for_example(words, tokens, rare_from, plain, nouns)}."
        )
    elif not ids:
        notes.append(f'The model\'s tokenizer drops "{plain}" altogether, so it cannot stand for the subject.')
    return notes


def check_class_noun(noun: str, tokens: Tokens, rare_from: int = RAREST_FROM) -> list[str]:
    """Sentences about a class noun that the model hardly knows. The subject is learnt from what it knows of the class:
    with a wrong one fidelity (DINO) was .454 instead of .744 (Ruiz et al. 2022, section 4.3). Whether the photos show
    that class nobody can tell here.

    tokens: as in `pick_identifier`.
    """
    notes = []
    plain = noun.casefold().split()
    if len(plain) > 3:
        notes.append(f'The class "{" ".join(plain)}" is a description. The class is one or two words, such as "dog".')
    for word in plain:
        ids = tokens(word)
        if len(ids) > 1:
            notes.append(
                f'The model reads "{word}" as {len(ids)} tokens and may not know what that is. If there is a more '
                'common word for the class, use it ("dog", "person", "toy").'
            )
        elif len(ids) == 1 and len(word) in _LENGTHS and ids[0] >= rare_from:
            notes.append(f'"{word}" is a rare word, good for an identifier; the class must be a common one ("dog").')
    return notes


def named(subjects: Sequence[Subject], seed: int, model: TrainingModel, warn: Callable[[str], object]) -> list[Subject]:
    """The subjects with identifiers, the user's or rare words. Says what is doubtful in them and in the class nouns."""
    words = model.token_words()
    taken = [subject.concept.identifier for subject in subjects if subject.concept.identifier.strip()]
    identifiers = []
    for concept in (subject.concept for subject in subjects):
        for text in check_class_noun(concept.class_noun, model.tokens, model.rare_from):
            warn(text)
        identifier = concept.identifier
        if identifier.strip():
            for text in check_identifier(identifier, words, model.tokens, concept.class_noun, model.rare_from):
                warn(text)
        else:
            identifier = pick_identifier(words, model.tokens, seed, avoid=taken, rare_from=model.rare_from)[0]
            taken.append(identifier)
        identifiers.append(identifier)
    return with_identifiers(subjects, identifiers)


def _candidates(words: Mapping[str, int], tokens: Tokens, avoid: Collection[str], rare_from: int) -> list[str]:
    avoided = {part for text in avoid for part in text.casefold().split()}
    found = []
    for spelling, number in words.items():
        word = spelling[: -len(_END)]
        if number < rare_from or not spelling.endswith(_END) or len(word) not in _LENGTHS:
            continue
        if not (word.isascii() and word.isalpha() and word.islower()) or word in DENIED or word in avoided:
            continue
        if len(word) == 4 and not _CONSONANTS.search(word):  # could be a name in some language
            continue
        if tokens(word) == [number]:
            found.append(word)
    return found


def _for_example(words: Mapping[str, int], tokens: Tokens, rare_from: int, *avoid: str) -> str:
    try:
        return f', for example "{pick_identifier(words, tokens, 0, 1, avoid, rare_from)[0]}"'
    except UserError:
        return ""


def _rank(seed: int, word: str) -> bytes:
    return hashlib.sha256(f"{seed} {word}".encode("ascii")).digest()


# places, airports, and weather reports by state
_PLACES = """
abia abz acco adan addo aig anka arl bgt blr bnp bund cair cda chd cir cusa dca deva dost doun emea etna eus fj gawx
ghat goma hak hyd ilwx irn isch itly jfc kade kap kosh kph lix lys maar miwx mour mowx mswx msy muc nep nev niro niv
nlwx nmwx nyk nyo ohl orah pisa ptbo pul rwa saif scwx siam spp sua swfl swi tbi ucn uer unl uy wawx waz wiwx wye
xian ygk yuma zam zas zw
"""

# first names and family names
_NAMES = """
adl ael aik ajit alek alin anja arif arne asad asim asta atul ayu azu bess bez bhk boni brev bryn buri cem cleo daan
davy deng diem dijk dita dru duni ebo egan elba elio emil emir enes enka eoin eph erno evie ewan fay gabi gaby gaye
geno geri gita guna guri gyan hern hew hira hov huan iva iver izz jace jap jaye jens jeon jett jiu jnu joao joni
juli kab kaj kani kant kasa kell keri kern khi kofi kohl koko kori kylo lel lewd lexa lili loeb loyd luce lug luz
mads maia maja mami marg mery mica mik miki miro mita mohd moz mue muh mul muna neel neko neu neva niko nima nuh olu
ozil paco phan poa raa raju rami reba reys rolf rona roux rox royd ruto sela shai sith siya sohn sosa stok styn sura
sven taku tita tobi tomi tua tuc tya tye tyga veda vlad yaz yemi yeo yui zah zaha zain zani zeb zeke zola
"""

# companies, clubs, universities, authorities, units, file types and other abbreviations
_ABBREVIATIONS = """
abd acct acdc acr acu adn adp adr aew afcb afd afs agg agp akb akon alz amex aml antv aol aon aos apd apec arns arr
asl asot asr atr aua aub bbuk bdg bgc bgs bln bma bmi bnha boks bpa bpd brc brs bsa bsd bse bsf bsgo bsp bsu btn
buss bwfc cae cah cak cau cav cbe cbp ccd ccl ccm ccp ccu cdo cec cep cfd cfp cfr cii cke clg clio cls cmc cmdr cmt
cmu cna cnet cng cns cov cpac cpec cpi cq crt cse csg csk csm csn cso csw cwgc cws dav daz dbs dbz dcs dcu ddc ddi
dds dfc dif dma dmx doa dok dprk dsa dsd dsp dss dtm dwp dyce dyne eba eccc ecg ecr edp eet efcc ehs emp emt enn esg
esq evp exe exol faf fas faze fbs fcu fdi fdny fdr fema ferg ffo ffxv fgo fhs fib fim fis fle fnc fod fpv frc fre
fta ftp ftse gbc gby ghc gog grc grl gsa gsc gsp gup hbcu hcs hdd hep hgtv hmv hns hoh hpv hsc hsv hta hts httr iac
iaf ibc ibd ibs icn idh iec igbo imac imc inv ioc ipc irc irgc isf isro itec jdm jig jio kgs khz kke kkr kpk kprc
kprs ksu kts lbj lhp lls lmp lob lpc lpg lsd lse lue maw mbi mci mdc mds mdt mgs mgt mha mib milb mlas mlg mmc mmj
mmva mnd mnf mpi msi msl msn mss mtc mtr mvc mwf nad naf nbl ncbd ncds ncs ndc ndi nhc nhq nim niu nmd nme noc noo
npa npt nrc nrf nrg nts ntv nwo nwsl nyrd occ ofi oga oic olt omd omf opi orc oti pafc pbb pbc pcm pdc pfa pff pgs
phc pkg pkk pln pmi pms ppm psc pss psst psv ptc pte ptv pvp qtr rcb rcn rda rdr req reu rfid rmb rms rop rpa rps
rsc rsl rti rtr rufc rui sba sbi sbu scd scp sdc sdk sdn sdsu seq sff sgh shc shrm sht shub siu sks sli slp slu slv
smg smi smw sne snf sng snhl sqm sqn srp srs ssg ssh sst stg stx suny svc svt swc sym tbd tbl tbr tdi tdp tedx tls
tms tmw tog trc tsb tsk tsm ttm ttu tvc tvn tvxq twa twc txst uaap ubs ucd uff uhc ulf umd unlv upp urd uscg usl usm
usn usu utm uwe vaw vcs vcu vig vk wada wafc wbo wcpo wdw weh wftv wib wiiu wir wku wod wra wri wrs wsl wsop wsw wti
wud wusa wwdc wwfc wwx xin xpo xvi yel ysl ytd zedd zshq
"""

# words of English and other languages, slang and abuse
_WORDS = """
aaj aay abit abou achs adb adh agen agio agro ait akos alai alon aloo anis aoa apha appt apur aroa aroo arum arvo
assn awg awk awn awp axes ayyy azo batt bays bcc bcoz begs beh bels bene bide bind bios bite biza blob blot boda
bode boer bolo bons boop bosa bosh bpm brae brea brt buda buka bunk byes byte cabs calc cals capo cata cava caw cern
chak chek chik chit chk choa chor chou chum cito clos cmon coed conv copd coyi crae crat crit croc cudi cull cutt
dala dall dats dayo ddos deja dels dema dene deol dere deux devo dih dike dito doge doka dole domo dres drie drin
dts ead eek eels ees ega egos elee ende enos esch ete eton etto etty ewe exas eyre fad fal fara fawn fck fere fert
fez fics fide fils fink fios flax fler flin flix flor foal fob foes fol fone fray fret frid fue fuls fuzz gad gaia
gami gani gann gare gari gasp gato gau gawd geez gels ghue gilt gion gios glan glar glas glos gmbh gno gola gorg
goro gote grom guan guin gums gura guyz gypt hace hag haj haji haka hali hamm hap hawa haya hays heer hein hela hele
heli hemi hess hibs hii hika hiko hime hina hino hiya hobo hock hoek hogg hok hom homs hoof hooo hoos hosa hota howl
hoya huff hula hurd huri hwan hymn ibis ibu icz iiii ija iles imes impy ince indi init inka irie ismo iwm izo japs
jic jie jinx joss juju kak kaka kanu karo kats kaw kea keef keel kert kidz kiln kilt kini kiri kiya kkkk klan klin
kly knw kobo koff koo kuro kwa laa lant lard lata laze leed leth leur lice lics lids lieb lien lito litt llll lobe
logg loma loos loth lott lox lun lyf lyk lyte mace macs mako malo masa mbps mede meen mek mell mend merc mert mese
metz mew mez mids miho milf mink minn mmes mmon moby mog moot mota motd motm mth muck mups mutt muy nach nage nasi
navi neh neha nek nem nerf nery neue neve nigh nips nir nnnn noff noh null nuns oday odo oily oku onde onew onex onf
oof oomf orum otas oue oute owo oxi padi parr pate pawn peds peed pele pelo peri perm pesa pex phat piff pik pika
pis pli plo pola pons pox pras pree pugh puli pung purr quoi quot rags rame raq rass reco redd redo reem rego rein
remi resh revs riba rigs rino rist rith rlly rofl roni rosy roti rout rubs ruk rune sain sakh saki sank sapp sata
sava seam seh seva sewn sez shat shem shep shld shma shud shui sill sito skc skit slan slav sleg slit slum smma smog
smol smug snip snug sobs soca sof sog soi soir sok sono spon sqft stea stec stfu stig stik stix suka sumi suru swam
swin szn taa tado taft tait taka tali tama tant tats taw teer tej tels tema thaw thn thos tich tint titi tiva tlap
tlot toda toid toma tope tora tq trav trex trib trix tros trow trun tubs tul tux tyl tym ufos uhhh uit unas unde
uous urie usky uth utto utz uuuu uzzi vaca vada vala vane vara vasc vaus vday vea vena vex vica vide vigo vill vini
viso voip voli volo vot wags waj waka wamy wata wea wedo weg weil weta wett whoo wilt wol wold wooo worx wray xiao
yad yaki yao yawn yess yey yoh yoke yom yoy yuck yuh zaki zawa zek zog zona zzzz
"""

DENIED: frozenset[str] = frozenset(" ".join((_PLACES, _NAMES, _ABBREVIATIONS, _WORDS)).split())
