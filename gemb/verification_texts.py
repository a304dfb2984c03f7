"""The texts that two models are compared on when the user gives none.

They are chosen for what goes wrong between two programs that should give the same vectors: the
tokenizer (scripts, byte fallback, white space, digits, literal special tokens), the batch (one
token beside hundreds), and the sliding window: in a bidirectional model with a window of 512 only
a text of more than 257 tokens sees it, so three texts are longer than 600.
"""

from __future__ import annotations

_ENGLISH = (
    "hello",
    "a",
    "Why is the sky blue?",
    "The Red Planet is the fourth planet from the Sun.",
    "How do I cancel an order that has already been shipped?",
    "Orders can be cancelled free of charge until the parcel has left our warehouse.",
    "What is the capital of France?",
    "Paris is the capital and the largest city of France.",
    "The bank raised its interest rate by a quarter of a point on Thursday.",
    "She sat on the bank of the river and watched the boats go by.",
    "It isn't what you don't know that gets you into trouble, it's what you know for sure.",
    "NEVER SHOUT AT A MODEL; IT DOES NOT HEAR YOU.",
    "the quick brown fox jumps over the lazy dog",
    "On 3 March 2024 at 07:45 the sensor read -12.75 °C, 1,013.25 hPa and 98 % humidity.",
    "Call +44 20 7946 0958 or write to someone@example.org before 31/12/1999.",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
)
_LATIN = (
    "Wie storniere ich eine Bestellung, die schon verschickt wurde?",
    "Donaudampfschifffahrtsgesellschaftskapitän",
    "L'été dernier, nous avons traversé les Pyrénées à vélo.",
    "¿Dónde está la biblioteca más cercana?",
    "A lua cheia iluminava o caminho até à praia.",
    "Zażółć gęślą jaźń.",
    "Pijamalı hasta yağız şoföre çabucak güvendi.",
    "Tôi muốn đặt một bàn cho bốn người vào tối nay.",
)
_SCRIPTS = (
    "Как отменить заказ, который уже отправлен?",
    "Столиця України розташована на берегах Дніпра.",
    "Πώς μπορώ να ακυρώσω μια παραγγελία;",
    "כיצד מבטלים הזמנה שכבר נשלחה?",
    "كيف يمكنني إلغاء طلب تم شحنه بالفعل؟",
    "मैं पहले से भेजा गया ऑर्डर कैसे रद्द करूँ?",
    "আমি কীভাবে আমার অর্ডার বাতিল করব?",
    "நான் எப்படி ஆர்டரை ரத்து செய்வது?",
    "ฉันจะยกเลิกคำสั่งซื้อที่จัดส่งแล้วได้อย่างไร",
    "已经发货的订单怎么取消？",
    "已經出貨的訂單怎麼取消？",
    "発送済みの注文をキャンセルするにはどうすればよいですか。",
    "이미 배송된 주문은 어떻게 취소하나요?",
    "როგორ გავაუქმო შეკვეთა?",
    "Ինչպե՞ս չեղարկել պատվերը։",
    "ቀድሞ የተላከ ትዕዛዝ እንዴት እሰርዛለሁ?",
    "ᚠᛇᚻ᛫ᛒᛦᚦ᛫ᚠᚱᚩᚠᚢᚱ᛫ᚠᛁᚱᚪ᛫ᚷᛖᚻᚹᛦᛚᚳᚢᛗ",  # rare: falls back to bytes
    "Das Wort 東京 und слово в одном предложении, mixed 한국어 too.",
)
_CODE = (
    "def add(a: int, b: int) -> int:\n    return a + b\n",
    "SELECT name, COUNT(*) FROM orders WHERE paid = FALSE GROUP BY name HAVING COUNT(*) > 3;",
    "for (size_t i = 0; i < n; ++i) {\n\tsum += x[i] * y[i];\n}",
    "git log --format=%s | gemb embed -o vectors.npy",
    '{"id": 17, "tags": ["a", "b"], "price": 1e-5, "note": null}',
    "<div class=\"card\"><a href='/cart?id=7&n=2'>Add to cart</a></div>",
    "error[E0382]: borrow of moved value: `buffer` --> src/main.rs:42:17",
    "https://example.org/a/b.html?q=blue+sky&lang=en#section-2",
)
_ODD = (
    "🙂",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 🇺🇦 and 👍🏽",
    "e\u0301 is not é until somebody normalises it",
    "  two leading spaces, a tab\tand trailing spaces   ",
    "line one\nline two\n\n\nline five\r\nline six",
    "<bos>literal special tokens<eos> <pad> <unk> <start_of_turn>user",
    "000000000000000000000000000000000000000000000000",
    "∑ₙ₌₁^∞ 1/n² = π²/6, ∀x ∈ ℝ: x² ≥ 0",
    "zero\u200bwidth\u00a0no-break\u2003em space",
    "title: none | text: ",
    "…—–“”‘’«»‹›※†‡•",
)
_LONG = (
    " ".join(_ENGLISH[2:12] * 6),
    "\n".join(_CODE * 5),
    " ".join(_SCRIPTS * 3),
)

VERIFICATION_TEXTS: tuple[str, ...] = _ENGLISH + _LATIN + _SCRIPTS + _CODE + _ODD + _LONG
