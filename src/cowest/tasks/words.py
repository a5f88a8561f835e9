"""The words by which answers are read, in some sixty languages. Data, and no code: what is missing is added here.

Alternatives of a regular expression are separated by ``|``; lists of words by spaces.
"""

from __future__ import annotations

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _alternatives(text: str) -> str:
    return "".join(line.strip() for line in text.strip().splitlines())


MARKERS: Final = _alternatives("""
    answer|ans|antwort|endantwort|lösung|réponse|respuesta|risposta|resposta|antwoord|svar|slutsvar|vastaus|odpowiedź|odpověď|
    odpoveď|odgovor|válasz|răspuns|cevap|cevabı|yanıt|cavab|javob|jawaban|jawapan|sagot|jibu|vastus|atbilde|atsakymas|
    përgjigje|erantzuna|đáp án|câu trả lời|trả lời|ответ|відповідь|отговор|одговор|жауап|απάντηση|պատասխան|პასუხი|
    תשובה|תשובה סופית|الجواب|الإجابة|الاجابة|جواب|پاسخ|उत्तर|जवाब|উত্তর|ਉੱਤਰ|ਜਵਾਬ|જવાબ|பதில்|விடை|సమాధానం|ಉತ್ತರ|ഉത്തരം|
    පිළිතුර|መልስ|정답|답변|답
""")
"""What marks an answer, before a colon."""
SPACELESS_MARKERS: Final = "答え|回答|解答|正解|答案|答|คำตอบ|ตอบ|ຄຳຕອບ|ចម្លើយ|အဖြေ"
"""The same in scripts without spaces."""
MARKER_ADJECTIVES: Final = _alternatives("""
    final|finale|finales|correcta?|correcte|corretta|correta|définitive|definitiva|akhir|cuối cùng|النهائي|النهائية
""")
"""What may stand between such a word and its colon."""
NO_MARKERS: Final = _words("""
    for of to this that these those no not without on about regarding note draft draft's draft’s wrong incorrect previous
    earlier your their his her student's student’s reference example sample other any each every what which explain why
    question reason für diese dieser diesen pour cette votre para por per questa esta essa для этот этого
""")
"""One of these among the three words before a marker: it speaks of an answer instead of giving one."""
NO_MARKERS_SPACELESS: Final = _alternatives(r"""
    这个?|這個?|该|該|此|你的|您的|この|その|あなたの|参考|參考|学生的?|错误|錯誤|(?<!\S)이|(?<!\S)그|참고
""")

LEAD_INS: Final = _alternatives(r"""
    (?:(?:the|my|your|our)\s+)?(?:(?:final|correct|best|right|most likely)\s+)*(?:answer|option|choice|label|class)\s*
    (?:here\s+)?(?:is|would be|must be|should be|will be)(?![\w'’])|
    (?:die\s+)?(?:\w+\s+)?antwort\s+(?:ist|lautet|wäre)\b|la\s+(?:bonne\s+)?réponse(?:\s+\w+)?\s+(?:est|serait)\b|
    la\s+respuesta(?:\s+\w+)?\s+(?:es|sería)\b|la\s+risposta(?:\s+\w+)?\s+(?:è|sarebbe)(?!\w)|
    a\s+resposta(?:\s+\w+)?\s+(?:é|seria)(?!\w)|het\s+(?:\w+\s+)?antwoord\s+is\b|svaret\s+(?:är|er)\b|
    odpowiedź\s+(?:to|brzmi)\b|(?:\w+\s+)?ответ\s*(?:[—–-]|это\b)|(?:الإجابة|الجواب)\s+(?:هي|هو)(?!\w)|
    (?:đáp án|câu trả lời)(?:\s+\w+)?\s+là(?!\w)|jawaban(?:nya)?\s+adalah\b|(?:정답|답)(?:은|는)
""")
"""An unmarked answer's introduction: "the answer is"."""
SPACELESS_LEAD_INS: Final = _alternatives("""
    (?:正确|正確|最终|最終)?(?:的)?(?:答案|选项|選項)(?:应该|應該)?(?:是|为|為)|(?:答え|正解|回答)は|คำตอบคือ
""")
OPTIONS: Final = "option|choice|letter|label|class|category|answer"
"""What may be written before a choice: "option B"."""
SPACELESS_OPTIONS: Final = "选项|選項|選択肢|选|選|보기"

QUESTIONS: Final = _alternatives("""
    question|q|query|problem|exercise|task|example|user|human|instruction|input|context|passage|frage|pregunta|domanda|pergunta|
    vraag|fråga|spørgsmål|spørsmål|pytanie|otázka|soru|kérdés|întrebare|câu hỏi|pertanyaan|soalan|kysymys|вопрос|питання|
    سؤال|السؤال|שאלה|प्रश्न|প্রশ্ন|คำถาม|问题|問題|问|問|質問|题目|題目|질문|문제|用户|ユーザー|사용자|usuario|utilisateur|benutzer
""")
"""What begins a next question or turn, before a colon."""

JOINERS: Final = r"\b(?:or|and|oder|und|ou|et|o|y|e|of|en|eller|och|og|или|и|lub|veya|ve)\b|或|和|または|또는"
"""Between two classes these make a choice of neither: "yes or no"."""
NO_WORDS: Final = _words("""
    no non não nao nie ne не нет ні nej nei nem nu tidak bukan không hayır لا לא όχι ei नहीं না নয়
""")
"""Classes that are also a word for "not" or "no": in running text they answer only where they stand by themselves."""
AFTER_NO: Final = _words("""
    because since as but and given due for it this that they the he she we i you there according based so if although though
    while when unless in on at with per is are
""")
"""What may follow "no" where it is the answer; a noun after it makes it a determiner ("no doubt")."""
NEGATORS: Final = _words("""
    not no never neither nor non without cannot cant hardly nicht kein keine keinen keinem keiner keines nie niemals weder pas ni
    jamais aucun aucune sans nunca tampoco sin né senza não nao nem sem niet geen nooit inte ikke ikkje ingen inget aldrig
    aldri ne není neni bez nu değil tidak bukan không chẳng chưa ei eivät не ни без нет ні ليس ليست غير لا لم لن לא אינו
    אינה δεν μη όχι नहीं न
""")
"""Words that deny what follows in their clause."""
AUXILIARIES: Final = _words("is was are were do does did has have had would could should wo ca must need ai")
"""With "n't" they do, too."""
NO_NEGATION: Final = _alternatives(r"""
    \b(?:no|without)(?: an?| any)? (?:doubt|question)\b|\bnot only\b|\bnicht nur\b|\b(?:keine?n?|ohne) zweifel\b|
    \b(?:aucun|sans(?: aucun)?) doute\b|\b(?:no hay|sin) dudas?\b|\bsenza dubbio\b|\bsem dúvida\b|\b(?:нет|без) сомнени\w+
""")
"""These deny nothing: "there is no doubt that"."""
TURNS: Final = r"\b(?:but|sondern|sino|however|mais|mas|maar|utan|но|а)\b|而是|但"
"""After these a negation no longer reaches: "not harmful but harmless"."""
NEGATED_BEFORE: Final = _alternatives("""
    (?:不(?:太|是|算|会|會|能|属于|屬於|构成)?|非|没有?|沒有?|无|無|未|勿|否|ไม่(?:ใช่|ได้|เป็น)?|មិន|ບໍ່)(?:很|太)?
""")
"""Right before a class, in scripts without spaces."""
NEGATED_AFTER: Final = _alternatives(r"""
    (?:的说法)?(?:(?:では|じゃ|で|とは|でも|は|には|が|であるとは)?(?:ない|なく|無い|ありません|いえない|言えない|しない|しません|思いません)|
    (?:하|되|스럽)?지(?:는|도|가)?\s*(?:않|못)|(?:이|가|은|는)?\s*아니|नहीं|নয়|değil|نیست|nicht\b|ไม่ใช่|nahi\b|nahin\b)
""")
"""Right behind a class, in languages that deny there."""
PARTICLES: Final = "的|了|啊|呀|吧|哦|です|である|だ|と|が|は|ครับ|ค่ะ|因为|因為"
"""One character of a script without spaces is mostly a part of another word, unless one of these follows."""
KOREAN_ENDINGS: Final = "입니다|이다|이에요|예요|이예요|이며|이고|이|가|은|는|로|으로|번"

REFUSALS: Final = _alternatives(r"""
    \bI(?:['’]?m| am)(?: very| so| really)? (?:sorry|afraid|unable|not able)\b|
    \bI (?:can(?:no|['’]?)t|can not|could(?:n['’]t| not)|won['’]t|will not|must decline|decline|do(?:n['’]t| not) (?:know|have))\b|
    \bas an ai\b|\bsorry, (?:but )?i\b|\b(?:unable|impossible) to (?:answer|help|assist|comply|judge|tell|determine)\b|
    \bich kann\b.{0,40}\bnicht\b|\btut mir leid\b|\bje (?:suis désol|ne (?:peux|sais))|\bdésolé|\blo siento\b|\bno puedo\b|
    \bmi dispiace\b|\bnon posso\b|\bdesculpe\b|\bnão posso\b|извините|я не (?:могу|знаю)|抱歉|对不起|對不起|
    我(?:无法|無法|不能|不知道)|申し訳|お答えでき|わかりません|죄송|
    آسف|عذرا|لا (?:أستطيع|يمكنني)|ขออภัย|ขอโทษ|क्षमा|xin lỗi|üzgünüm|\bmaaf\b
""")
"""How a model says that it cannot or will not answer."""
