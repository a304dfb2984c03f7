"""200 varied texts for comparing two programs on one model: scripts, code, emoji, empty, very long.

All are written here or made here from what is written, without chance: the same list everywhere.
Three have more than 2048 tokens, 25 more than the 257 that fit a window of 512.
"""

from __future__ import annotations

from gemb.evaluation.agreement import VERIFICATION_TEXTS

SENTENCES = {
    "en": [
        "The ferry leaves at dawn and the harbour smells of diesel and wet rope.",
        "Reset the router by holding the small button at the back for ten seconds.",
        "A cell divides once its DNA has been copied and checked for damage.",
        "We could not reproduce the crash on the older kernel.",
        "Inflation fell to 2.4% in September, below what most economists had forecast.",
        "Add two eggs, whisk, and let the batter rest for half an hour.",
        "My grandmother kept every letter he ever wrote to her.",
        "The court held that the contract was void from the beginning.",
        "Rust's borrow checker rejects this because `x` does not live long enough.",
        "Low clouds over the valley will burn off by noon.",
    ],
    "de": [
        "Der Zug nach Freiburg hat heute etwa zwanzig Minuten Verspätung.",
        "Die Rechnung wird Ihnen innerhalb von vierzehn Tagen zugeschickt.",
        "Im Winter füttern wir die Vögel im Garten mit Sonnenblumenkernen.",
        "Die Straßenbahnhaltestelle wurde um fünfzig Meter verlegt.",
    ],
    "fr": [
        "Le musée est fermé le lundi, sauf pendant les vacances d'été.",
        "Il a fallu réécrire l'analyseur syntaxique de fond en comble.",
        "La pluie tombait sans bruit sur les toits d'ardoise.",
        "Quel est le délai de rétractation pour un achat en ligne ?",
    ],
    "es": [
        "El volcán entró en erupción de madrugada sin causar daños.",
        "¿Cuánto cuesta enviar un paquete de tres kilos a Canarias?",
        "La niña leía en voz alta mientras su abuelo dormía.",
    ],
    "ru": [
        "Поезд прибывает на третий путь в восемь часов вечера.",
        "Функция возвращает отсортированный список без повторений.",
        "Весной река разливается и заливает луга.",
    ],
    "uk": ["Хліб тут печуть щоранку, і запах чути на всю вулицю."],
    "el": ["Το νησί δεν έχει αεροδρόμιο, μόνο ένα μικρό λιμάνι."],
    "he": ["הרכבת הבאה לירושלים יוצאת בעוד עשר דקות."],
    "ar": ["تقع المدينة القديمة على تل يطل على البحر.", "كيف أغيّر كلمة المرور الخاصة بي؟"],
    "fa": ["کتابخانه هر روز از ساعت نه تا هفده باز است."],
    "hi": ["अगली बस शाम छह बजे मंदिर के सामने से चलेगी।", "यह फ़ंक्शन एक सूची लौटाता है।"],
    "bn": ["নদীর ওপারে একটি পুরোনো ইটের কারখানা আছে।"],
    "ta": ["மழை நின்றதும் குழந்தைகள் வெளியே ஓடினார்கள்."],
    "te": ["ఈ గ్రామంలో ప్రతి ఆదివారం సంత జరుగుతుంది."],
    "th": ["ร้านนี้เปิดทุกวันตั้งแต่เจ็ดโมงเช้าถึงสองทุ่ม"],
    "vi": ["Chợ nổi họp từ sáng sớm và tan trước chín giờ."],
    "zh": [
        "图书馆周一闭馆，其余时间上午九点开放。",
        "這座橋建於一九三二年，全長四百公尺。",
        "请检查电缆是否插好，然后重新启动设备。",
    ],
    "ja": [
        "次の電車は七分後に二番線に到着します。",
        "この関数は空のリストを受け取ると例外を投げる。",
        "祖母の庭には古い柿の木があった。",
    ],
    "ko": ["도서관은 월요일에 문을 닫습니다.", "케이블이 제대로 연결되었는지 확인하세요."],
    "tr": ["Köprünün onarımı yağmur yüzünden üç hafta gecikti."],
    "pl": ["Wczoraj wieczorem zamknięto most z powodu silnego wiatru."],
    "fi": ["Järven jää kantaa yleensä jo joulukuun alussa."],
    "sw": ["Watoto wanacheza mpira kando ya mto kila jioni."],
    "ka": ["მატარებელი საღამოს რვა საათზე ჩამოდის."],
    "hy": ["Գնացքը ժամանում է երեկոյան ութին։"],
    "am": ["ባቡሩ ከምሽቱ ሁለት ሰዓት ይደርሳል።"],
    "km": ["រថភ្លើងមកដល់ម៉ោងប្រាំបីយប់។"],
}
CODE = (
    "while read -r line; do printf '%s\\n' \"${line%%#*}\"; done < hosts.txt | sort -u",
    "class Node:\n    def __init__(self, value, left=None):\n        self.value = value\n",
    "fn main() -> Result<(), Box<dyn Error>> {\n    let n = env::args().len();\n    Ok(())\n}",
    "const total = items.reduce((sum, { price, count }) => sum + price * count, 0);",
    '#include <stdio.h>\nint main(void) {\n\tputs("hello\\n");\n\treturn 0;\n}\n',
    "SELECT d.id, d.title FROM docs AS d LEFT JOIN tags USING (id) WHERE tags.name IS NULL;",
    '@media (max-width: 40em) { .menu > li:not(:last-child)::after { content: "\\2022"; } }',
    "apiVersion: v1\nkind: Pod\nmetadata:\n  name: worker\nspec:\n  containers: []\n",
    "Traceback (most recent call last):\n  File \"a.py\", line 3, in <module>\nKeyError: 'x'",
    "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n-old line\n+new line\n context\n",
    r"\begin{equation} e^{i\pi} + 1 = 0, \quad \int_0^\infty e^{-x^2}\,dx = \frac{\sqrt{\pi}}{2}"
    r" \end{equation}",
    "main :: IO ()\nmain = interact $ unlines . map reverse . lines",
)
ODD = (
    "",
    " ",
    "\n",
    "\t\t\t",
    ".",
    "?!?!?!",
    "0",
    "٣٫١٤١٥٩ ≈ 三点一四 ≈ 3.14159",
    "🎉🎉🎉 shipped!! 🚀🚀 (finally 😅)",
    "👨🏿‍🚀🧑🏻‍🌾👩🏽‍⚕️🏴󠁧󠁢󠁳󠁣󠁴󠁿🇯🇵🇧🇷",
    "Z̸̢̛a̴͝l̵̕g̶̈́ö̷ ţ̵e̶͗x̷t̴̾",
    "ﷺ ﬁ ﬂ Ⅻ ℃ ㎏ ｆｕｌｌ ｗｉｄｔｈ ｶﾅ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒸𝓊𝓇𝓈𝒾𝓋ℯ 𝟙𝟚𝟛",
    "\u202eright to left override\u202c and \ufeffa byte order mark",
    "\x00\x01\x02 control \x1b[31mred\x1b[0m \x7f",
    "<start_of_image> <mask> <pad> <unused42> [multimodal]",
    "a" * 300,
    "ab " * 120,
    "-" * 200,
    "\n".join(str(i * i) for i in range(60)),
    "\U0001f9ff\U000e0041\U0010fffd\ue000",  # rare and private: falls back to bytes
    "\n\n\n\n\n\n\n\n\n\nmany\n\n\n\nnewlines\n\n",
    "title: none | text: title: none | text: twice",
    "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789+/AbCdEfGhIjKlMnOpQrStUvWxYz0123456789+/==",
)


def _varied() -> list[str]:
    single = [sentence for sentences in SENTENCES.values() for sentence in sentences]
    english = SENTENCES["en"]
    # Runs of sentences: paragraphs of one language, then of several.
    paragraphs = [" ".join(english[i % 10 :] + english[: i % 10]) * (1 + i // 4) for i in range(16)]
    paragraphs += [" ".join(single[i::7]) * (1 + i % 3) for i in range(14)]
    paragraphs += ["\n".join(CODE[i:]) for i in range(0, 8, 2)]
    very_long = [
        " ".join(single) * 4,
        "\n\n".join(english * 25),
        "\n".join(CODE) * 8,
    ]
    texts = [*VERIFICATION_TEXTS, *single, *CODE, *ODD, *paragraphs, *very_long]
    queries = [f"task: search result | query: {text}" for text in single]
    documents = [f"title: none | text: {text}" for text in single]
    return (texts + [x for pair in zip(queries, documents, strict=True) for x in pair])[:200]


VARIED_TEXTS: tuple[str, ...] = tuple(_varied())
