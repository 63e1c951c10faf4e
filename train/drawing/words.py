"""What `texts` draws from: short word lists of our own, names, and the forms of dates, receipts and the like.

Forms are filled by `str.format` and stand three spaces or a line apart; one that stands twice is drawn twice as often.
"""

import re


def _forms(table: str) -> tuple[str, ...]:
    return tuple(re.split(r"\s{3,}", table.strip()))


WORDS = {
    "en": """
    the of and to in is you that it he was for on are as with his they at be this have from or one had by word but
    not what all were we when your can said there use an each which she do how their if will up other about out many
    then them these so some her would make like him into time has look two more write go see number no way could
    people my than first water been call who oil its now find long down day did get come made may part street
    invoice total amount paid customer receipt delivery quality knight rhythm jazz quick fox lazy judge vexed zebra
    awkward pixel height through thought enough laugh yacht queue office copy order item code table window garden
    winter market bridge engine signal yellow purple orange silver quarter journal exhibit figure section chapter
    volume edition library student teacher science history museum theatre station airport luggage ticket platform
    weekday evening morning breakfast kitchen bathroom furniture electric battery charger cable screen keyboard
    software package license contract signature address balance credit debit account branch manager director company
    limited group holding service support warranty repair exchange refund discount voucher coupon member points
    valid until expires opening closed monthly annual interest mortgage insurance premium policy claim vehicle
    weight length width pressure temperature maximum minimum average approximately excluding including shipping
    handling fragile
    """.split(),
    "de": """
    der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er hat
    dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur bis
    mehr durch man sein wurde prozent straße größe schlüssel übung äpfel öfen weiß heißt müßig rechnung gesamt
    betrag zahlung vielen dank bäckerei jahr quelle zwölf boxkämpfer jagt büro auftrag kunde nummer datum uhrzeit
    lieferung artikel menge einzelpreis mehrwertsteuer gutschein rückgeld geöffnet geschlossen montag frühstück
    abfahrt ankunft bahnhof flughafen gepäck fahrkarte zeitung geschichte wissenschaft gesellschaft verwaltung
    öffentlich geschäft
    """.split(),
    "fr": """
    de la le et les des en un du une que est pour qui dans par plus pas au sur ne se ce il sont avec son cette mais
    comme être tout nous sa aussi très même après où état été année déjà façon garçon noël forêt hôtel château île
    maïs sœur œuvre cœur à là voilà total ticket merci monnaie prix unité carte montant français reçu élève crème
    brûlée whisky kiosque bureau commande client numéro date heure livraison quantité facture remise fermé ouvert
    lundi déjeuner départ arrivée gare aéroport bagage journal histoire société théâtre musée bibliothèque étage
    près légume pâte goût août naïf ambiguë
    """.split(),
    "es": """
    de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me si sin sobre
    este ya entre cuando todo esta ser son dos también fue había era muy años hasta desde está mañana niño señor
    español corazón público día último pingüino cigüeña precio cantidad factura gracias número calle jueves
    exquisito oficina pedido cliente fecha hora entrega descuento cerrado abierto lunes desayuno salida llegada
    estación equipaje periódico historia sociedad teatro museo biblioteca alumno montaña pequeño teléfono dirección
    código sección
    """.split(),
    "it": """
    di e che la il un a per è in una mi sono ho non ma lo ha le si ti i con cosa se io come da ci no questo qui hai
    sei del bene tu sì della più perché città università caffè così però già libertà scontrino totale grazie prezzo
    quantità via piazza quaderno zucchero ufficio ordine cliente data ora consegna sconto chiuso aperto lunedì
    colazione partenza arrivo stazione bagaglio giornale storia società teatro museo biblioteca martedì virtù giù
    metà
    """.split(),
    "pt": """
    de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu sua ou
    ser quando muito há nos já está eu também só pelo pela até isso ação coração informação irmã pão três avô você
    preço rua obrigado número escritório pedido cliente data hora entrega desconto fechado aberto segunda saída
    chegada estação bagagem jornal história sociedade teatro museu biblioteca câmbio têxtil órgão lições útil
    """.split(),
    "nl": """
    de van een het en in is dat op te voor zijn met die niet aan er om ook als dan maar bij nog uit naar heeft ze
    over tot worden door deze jaar mijn ijs vrijheid lijn coördinatie reünie één prijs bedrag straat dank quiz
    kantoor bestelling klant datum levering korting gesloten geopend maandag ontbijt vertrek aankomst station bagage
    krant geschiedenis museum bibliotheek knieën zeeën café
    """.split(),
    "pl": """
    w i na z się nie do to że jest o jak za od co po ale przez przy tak dla czy już był być może który tylko jego
    można łódź żółć gęś źdźbło ćma ósmy święta dzień rachunek razem ulica zażółć gęślą jaźń reszta biuro zamówienie
    klient data godzina dostawa rabat zamknięte otwarte poniedziałek śniadanie odjazd przyjazd dworzec bagaż gazeta
    książka muzeum wiśnia pięść część żeński
    """.split(),
    "cs": """
    a se v na je že s z do o i to k ve za by ale jako po jsem podle tak byl jen jeho když aby který více dům člověk
    příliš žluťoučký kůň úpěl ďábelské ódy řeka šťastný účet celkem ulice něco děkujeme cena
    """.split(),
    "sk": """
    a v sa na je že s do z o ako to za po by ale bol aj pre od ich tak len kde keď môže deň ľudia vŕba stĺp kôň
    mäkčeň päť účet spolu ulica
    """.split(),
    "sv": """
    och i att det som en på är av för med till den har de inte om ett han men var jag sig från vi så kan när år där
    också äpple öl åska sjö gräs kvitto summa moms tack väg
    """.split(),
    "da": """
    og i at det er en til på med for af de den der ikke har han som et jeg var men sig fra vi kan om så når år også
    være øl æble å sø beløb kvittering tak gade rødgrød fløde
    """.split(),
    "fi": """
    ja on ei se että hän oli mutta niin kun joka myös sen mitä tämä ovat vain jos kuin yö työ äiti hyvä päivä öljy
    yhteensä kuitti kiitos katu hinta määrä syyskuu
    """.split(),
    "hu": """
    a az és hogy nem is egy ez volt csak meg már van de ha még mint el vagy lesz minden azt után kell öt őr űr
    árvíztűrő tükörfúrógép összesen nyugta köszönjük utca ár időpont gyönyörű
    """.split(),
    "ro": """
    de și în a la cu nu o că pe din un care mai să este au pentru sunt fi prin după între până fără ștefan țară
    înălțime mâine bucurești bon total mulțumim stradă preț cantitate
    """.split(),
    "tr": """
    ve bir bu da ne için ile çok daha gibi ama olarak var kadar en sonra o ki mi değil ben şey gün iyi büyük küçük
    güneş ağaç ışık şişe çocuk ücret toplam fiş teşekkürler sokak adet istanbul
    """.split(),
    "lv": """
    un ir ar no uz par ka kā bet arī tas viņš viņa tika gada gadā pēc līdz vai šī ļoti nav ģimene ķirsis čeks
    paldies iela cena jūra ņem
    """.split(),
    "lt": """
    ir į kad iš su yra tai bet kaip buvo už jis savo apie po nuo dar jau metų ąžuolas ėjo žmogus šuo ūkis čia kvitas
    ačiū gatvė kaina
    """.split(),
    "et": """
    ja on ei et see ta oli ka kui mis aga siis nii oma veel või üks aasta öö õun äär ühis summa tänan tänav hind
    kviitung
    """.split(),
    "hr": """
    i u je se na da za od su s a ne kao što o ili bio će iz po samo koji može čovjek đak žena šuma ćup račun ukupno
    hvala ulica cijena
    """.split(),
    "is": """
    og að í á það er sem við ekki til var en með um hann af fyrir þú ég þorn æði öl ís ár bær maður kvittun takk
    gata verð
    """.split(),
    "mt": """
    u li ta il fil din huwa mill għal dan hija kien ma għandu ħobż żebbuġ ġnien ċavetta irċevuta grazzi triq prezz
    """.split(),
    "cy": """
    y yn a i o ar ei ac mae ŵyr tŷ ŵy dŵr gŵr ffŷs siop diolch stryd pris cyfanswm
    """.split(),
}
SURNAMES = """
    Müller Smith García Rossi Dubois Novák Kowalski Jansen Silva Nagy Popescu Yılmaz Lind Holm O'Neil McGraw Quist
    Weber Zhou Xavier Ibsen
""".split()
CITIES = """
    Berlin Paris Kraków Brno Lisboa Oslo Zürich München Köln Łódź Málaga Genève Aarhus Turku Győr Iași İzmir Wien
    Graz Leeds York Quito
""".split()
MONTHS = """
    January February March April May June July August September October November December Jan Feb Mar Apr Jun Jul
    Aug Sep Oct Nov Dec Januar März Mai Juni Juli Oktober Dezember janvier février mars avril mai juin juillet août
    décembre enero agosto diciembre gennaio luglio listopad srpen
""".split()
DAYS = """
    Mon Tue Wed Thu Fri Sat Sun Monday Friday Mo Di Mi Do Fr Sa So lundi jeudi martes sábado
""".split()
STREETS = (
    "Main St.|High Street|Rue de la Paix|Bahnhofstraße|Calle Mayor|Via Roma|Kerkstraat|ul. Długa|Dlouhá|Storgatan|"
    "Avenida Brasil|Elm Ave|Oak Rd"
).split("|")
STREET_KINDS = ("St", "Road", "Weg", "Platz", "Ave.", "ulica")
GOODS = (
    "Coffee|Espresso|Caffè Latte|Tea|Bread|Milk 1L|Butter|Eggs x12|Apples|Bananas kg|Café crème|Käse|Brötchen|"
    "Wasser 0,5|Vin rouge|Pommes frites|Jamón|Paella|Pizza Margherita|Zupa|Piwo 0.5l|Svíčková|Smör|Rødgrød|"
    "Olive Oil|Shampoo|AA Batteries|Phone Case|USB-C Cable|Screws M4x20|Paint 2.5L|Parking|Taxi|Room 214|City Tax|"
    "Deposit|Discount|Voucher|VAT 19%|MwSt 7%|TVA 20%|IVA 21%|Service|Tip|Subtotal|TOTAL|Cash|Change|Card"
).split("|")
CURRENCIES = ("€", "$", "£", "¥", "EUR", "USD", "CHF", "kr", "zł", "Kč", "Ft", "US$", "R$", "TL")
DOMAINS = "com org net de fr it es eu io co.uk pl cz se info ai ch".split()
UNITS = "%| %|°|°C| kg| cm| km/h| ml|x|st|th|nd|m²| g| kWh| GB|µm|/10".split("|")
DATES = _forms(r"""
    {day:02}.{month:02}.{year}   {day:02}/{month:02}/{year}   {year}-{month:02}-{day:02}
    {day:02}.{month:02}.{year}   {day:02}/{month:02}/{year}   {year}-{month:02}-{day:02}
    {day:02}-{month:02}-{year}   {day}.{month}.{short:02}   {month}/{day}/{short:02}   {month}/{day}/{year}
    {day:02} {month:02} {year}   {day:02}{month:02}{short:02}   {month:02}/{short:02}   {year}/{month:02}/{day:02}
    {day} {name} {year}   {name} {day}, {year}   {day}. {name} {year}   {day}-{name}-{short:02}   {name} {year}
    {name} '{short:02}   {weekday} {day} {name} {year}   {weekday}, {day:02}.{month:02}.{year}
    {weekday}. {name} {day}
""")
TIMES = _forms(r"""
    {hour:02}:{minute:02}   {hour:02}:{minute:02}:{second:02}   {half}:{minute:02} AM   {half}:{minute:02} pm
    {half}:{minute:02} p.m.   {hour}.{minute:02} Uhr   {hour}h{minute:02}
    {hour:02}:{minute:02}-{later:02}:{second:02}
""")
RECEIPTS = _forms(r"""
    {count} x {good} {amount}   {count} X {good} {amount}   {good} {amount}   {good} {amount} €   {good} {amount} A
    {count} x {good} {amount}   {count} X {good} {amount}   {good} {amount}   {good} {amount} €   {good} {amount} A
    {count} × {good} {amount}   {count}* {good} {amount}   {good} {amount} EUR   {good} {amount} *
    {good}{dots}{amount}   {good} ({count}) {amount}   {count} @ {amount}   {count} @ ${amount}   TOTAL {price}
    Total: {price}   Summe {price}   SUMME EUR {amount}   Subtotal {amount}   A PAYER {price}   TOTALE {price}
    SUMA PLN {amount}   Balance Due {price}   VISA ****{card}   Mastercard XXXX {card}   EC-Karte ###{card}
    CARD *{card}   CHANGE {amount}   #{card} {good}   VAT {count}% {amount}   MwSt {count},00 % {amount}
    TVA {count}.0% {amount}   Tax {amount}   Kasse {count} Bon {card}
""")
PHONES = _forms(r"""
    +## ### #######   (###) ###-####   ###-###-####   0## ### ## ##   +##-###-####-###   0###/######
    +1 ### ### ####   ## ## ## ## ##   +## (0)## ### ## ##   1-800-###-####   #### ####   Tel. 0#### ######
    Tel: ### ### ###   Fax +## # ########   Phone: ###.###.####   T ### ## ## ##
""")
ADDRESSES = _forms(r"""
    {street} {house}   {house} {street}   {street} {house}, {city}   {house} {street}, {city}
    {street} {house}, {code} {city}   {code} {city}   {city} {code}   D-{code} {city}   F-{code} {city}
    {city}, {letters} {code}   {letters}{digit} {digit}{tail} {city}   {title} {initial}. {surname}
    {title} {surname}   {surname}, {initial}.   {initial}. {surname} & Co.   P.O. Box {house}, {city}
""")
EMAILS = _forms(r"""
    {a}@{b}.{top}   {a}.{c}@{b}.{top}   {a}_{c}@{b}.{top}   {a}{digits}@{b}.{top}   {a}-{c}@{b}-{a}.{top}
    {i}.{a}@{b}.{top}   {a}+{c}@{b}.{top}   mailto:{a}@{b}.{top}   <{a}@{b}.{top}>   E-Mail: {a}@{b}.{top}
""")
URLS = _forms(r"""
    https://{b}.{top}   www.{b}.{top}   http://www.{b}.{top}/   {b}.{top}/{a}   https://{b}.{top}/{a}/{digits}
    {b}.{top}/{a}.html   https://www.{b}.{top}/{a}?id={digits}&q={c}   ftp://{b}.{top}/{a}_{c}.pdf
    {b}.{top}:{digits}   @{a}_{c}   #{a}{c}   https://{i}.{top}/{token}   C:\{a}\{c}.txt   ~/{a}/*.{i}
    /usr/{a}/{c}-{digits}.log
""")
LABELS = _forms(r"""
    No.   Nr.   N°   №   Ref:   ID   S/N   Inv. #   Art.   §   Lot   P/N:   ISBN   Order   Bon-Nr.:   SKU
""")
FORMULAS = _forms(r"""
    {a} {sign} {b} = {c}   {x} = {a}{sign}{b}   {a}{sign}{b}   {a} {sign} {b} = {c}   {x} = {a}{sign}{b}
    {a}{sign}{b}   {a} x {b} x {c} mm   ({x}+{a})/{b}   {x}[{a}] = {b};   {a}/{b}   {a}:{b}   {x}_{a} >= {b}
    if ({x} != {a}) {{   {a}½ {x}²   {a}¼ cup   {b}¾ in.   {x}³ ÷ {a}   ${x} = '{w}';   `{w}`   {x} | {w} > {b}
    <{w}>   \{w}{{{a}}}   {x}^{a} % {b}   {a}° {b}' N   {a}'{b}"   [{a}, {b})   {{{x}: {a}}}   {w}({x}, {a})   &{w};
    *{w}*   ~{a} {w}   © {c} {w}   {w}®   {w}™   ¿{w}?   ¡{w}!   § {a} ¶ {b}   {a} ± {b}   {a} • {b} · {c}   {a} ¢
    {w}¹ {x}ª {a}º
""")
