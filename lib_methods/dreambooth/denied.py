"""Short words that stand for something, so that none of them becomes a subject's name.

A model that has read a word next to pictures draws what it saw: `sks`, the word of the first public examples, is a
rifle. Looked at were the words of two to four letters at the rare end of CLIP's vocabulary, from id 40,000 on; what is
more frequent needs no list. Many of these stand for more than one thing; each is listed once.
"""

from __future__ import annotations

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
