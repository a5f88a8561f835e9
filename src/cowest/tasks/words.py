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
    question reason reasons behind rationale found alternative
    für diese dieser diesen pour cette votre para por per questa esta essa для этот этого
""")
"""One of these among the three words before a marker: it speaks of an answer instead of giving one."""
NO_MARKERS_SPACELESS: Final = _alternatives(r"""
    这个?|這個?|该|該|此|你的|您的|この|その|あなたの|参考|參考|学生的?|错误|錯誤|(?<!\S)이|(?<!\S)그|참고|
    \bde la|\bde l['’]|\bdella|\bda|\bder|\bvan het
""")

LEAD_INS: Final = _alternatives(r"""
    (?:(?:the|my|your|our)\s+)?(?:(?:final|correct|best|right|most likely)\s+)*(?:answer|option|choice|label|class)\s*
    (?:here\s+)?(?:is|would be|must be|should be|will be)(?![\w'’])|
    (?:die\s+)?(?:\w+\s+)?antwort\s+(?:ist|lautet|wäre)\b|la\s+(?:bonne\s+)?réponse(?:\s+\w+)?\s+(?:est|serait)\b|
    la\s+respuesta(?:\s+\w+)?\s+(?:es|sería)\b|la\s+risposta(?:\s+\w+)?\s+(?:è|sarebbe)(?!\w)|
    a\s+resposta(?:\s+\w+)?\s+(?:é|seria)(?!\w)|het\s+(?:\w+\s+)?antwoord\s+is\b|svar(?:et)?\s+(?:är|er)\b|vastaus\s+on\b|
    (?:odpowiedź|odpowiedzią)\s+(?:to|jest|brzmi)\b|odpov[eě]ď\s+je\b|(?:\w+\s+)?(?:ответ|відповідь)\s*(?:[—–-]|это\b|це\b)|
    απάντηση\s+είναι(?!\w)|răspunsul(?:\s+\w+)?\s+este\b|(?:a\s+)?(?:helyes\s+)?válasz(?:\s+az?)?(?=\s+\(?[A-Z]\b)|
    (?:الإجابة|الجواب)(?:\s+\w+)?\s+(?:هي|هو)(?!\w)|התשובה(?:\s+\w+)?\s+(?:היא|הוא)(?!\w)|
    (?:پاسخ|جواب)\s+(?:صحیح|درست|نهایی)(?!\w)(?!\s*:)|(?:सही|अंतिम)\s+(?:उत्तर|जवाब)(?!\w)(?!\s*:)|
    (?:doğru|son|nihai)\s+(?:cevap|yanıt)(?!\w)(?!\s*:)|
    (?:đáp án|câu trả lời)(?:\s+\w+)?\s+là(?!\w)|jawa[bp]an(?:nya)?(?:\s+yang\s+\w+)?\s+(?:adalah|ialah)\b|(?:정답|답)(?:은|는)
""")
"""An unmarked answer's introduction: "the answer is"."""
SPACELESS_LEAD_INS: Final = _alternatives("""
    (?:正确|正確|最终|最終)?(?:的)?(?:答案|选项|選項)(?:应该|應該)?(?:是|为|為)|(?:答え|正解|回答)は|คำตอบคือ
""")
OPTIONS: Final = _alternatives("""
    option|choice|letter|label|class|category|answer|opción|opzione|opção|alternativa|alternativ|optie|opcja|opcję|možnost|
    opțiunea|vaihtoehto|variante|seçenek|pilihan|opsi|lựa chọn|phương án|вариант|варіант|επιλογή|विकल्प|الخيار|אפשרות|گزینه|ข้อ
""")
"""What may be written before a choice: "option B"."""
SPACELESS_OPTIONS: Final = "选项|選項|選択肢|选择|選擇|选|選|보기"

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
CHOSEN: Final = _alternatives(r"""
    (?i:\b(?:I|we)(?:['’]d| would| will|['’]ll)?(?: go (?:with|for)| choose| pick| select| chose| opt for)|
    \bit(?: must| has to| should) be|\bwe (?:get|have)|ich wähle|je choisis|elijo|escolho|scelgo|выбираю)
    \s+[*_(\[]*([A-Z])(?![^\W_])
""")
"""What may be written before the letter of a choice, which is a capital there."""
IS_RIGHT: Final = _alternatives(r"""
    \s*(?:(?:is|ist|est|es|è|é|är|er|to|je|on|είναι|—|является)\s+(?:the |la |el |a |il |die |das )?(?:most |most likely )?
    (?:correct|right|best|true|answer|richtig|korrekt|bonne|correcte?a?|corretta|correta|rätt|poprawna|správně|oikein|правильн|верн|σωστ)|
    (?:が|は)(?:正解|正しい|答え)|(?:是|为)?(?:最)?(?:正确|正確|对的|對的)|(?:가|이)\s*(?:정답|맞))
""")
"""What may be written behind it: "B is correct"."""
AFTER_NO: Final = _words("""
    because since as but and given due for it this that they the he she we i you there according based so if although though
    while when unless in on at with per is are
""")
"""What may follow "no" where it is the answer; a noun after it makes it a determiner ("no doubt")."""
NEGATORS: Final = _words("""
    not no never neither nor non without cannot cant hardly barely scarcely rarely seldom unlikely nothing nobody none lack
    lacks lacking fail fails failed doubt doubts doubtful nichts rien nada niente nulla niets ingenting nic ничего нічого nicht
    kein keine keinen keinem keiner keines nie niemals weder pas ni
    jamais aucun aucune sans nunca tampoco sin né senza não nao nem sem niet geen nooit inte ikke ikkje ingen inget aldrig
    aldri ne není neni bez nu değil tidak bukan không chẳng chưa ei eivät не ни без нет ні ليس ليست غير لا لم لن לא אינו
    אינה δεν μη όχι नहीं न
""")
"""Words that deny what follows in their clause."""
AUXILIARIES: Final = _words("is was are were do does did has have had would could should wo ca must need ai")
"""With "n't" they do, too."""
NO_NEGATION: Final = _alternatives(r"""
    \b(?:no|without|beyond|little)(?: an?| any| reasonable| all)* (?:doubt|question)\b|\bnothing but\b|\bnone other than\b|
    \bnot only\b|\bnicht nur\b|\b(?:keine?n?|ohne) zweifel\b|
    \b(?:aucun|sans(?: aucun)?) doute\b|\b(?:no hay|sin) dudas?\b|\bsenza dubbio\b|\bsem dúvida\b|\b(?:нет|без) сомнени\w+
""")
"""These deny nothing: "there is no doubt that"."""
TURNS: Final = r"\b(?:but|sondern|sino|however|mais|mas|maar|utan|но|а)\b|而是|但"
"""After these a negation no longer reaches: "not harmful but harmless"."""
NEGATED_BEFORE: Final = _alternatives(r"""
    (?:不(?:太|是|算|会|會|能|属于|屬於|构成)?|非|没有?|沒有?|无|無|未|勿|否|
    ไม่(?:ใช่|ได้|เป็น)?|មិន|ບໍ່|(?:难以|難以|很难|很難)(?:说|說)?是?)(?:很|太)?|
    \b(?:far from|anything but|free (?:of|from)|rather than|instead of|as opposed to|less|short of)(?: being)?(?: an?| any| the)?
""")
"""Right before a class: in scripts without spaces, and where several words deny together."""
NEGATED_AFTER: Final = _alternatives(r"""
    (?:的说法)?(?:(?:では|じゃ|で|とは|でも|は|には|が|であるとは)?(?:ない|なく|なかった|無い|ありません|ありえない|あり得ない|(?:いえ|言え|でき|し|思え|思い|思わ|考え|考えられ)(?:ない|ません))|
    (?:하|되|스럽)?지(?:는|도|가)?\s*(?:않|못)|(?:이|가|은|는)?\s*아니|नहीं|নয়|değil|نیست|nicht\b|ไม่ใช่|nahi\b|nahin\b)
""")
"""Right behind a class, in languages that deny there."""
PARTICLES: Final = "的|了|啊|呀|吧|哦|です|である|だ|と|が|は|ครับ|ค่ะ|因为|因為"
"""One character of a script without spaces is mostly a part of another word, unless one of these follows."""
KOREAN_ENDINGS: Final = "입니다|이다|이에요|예요|이예요|이며|이고|이|가|은|는|로|으로|번"

REFUSALS: Final = _alternatives(r"""
    \bI(?:['’]?m| am)(?: very| so| really| just)? (?:sorry|afraid|unable|not (?:able|sure|certain))\b|
    ^\W*not sure\b|\bI(?: must| have to)? (?:refuse|apologi[sz]e)\b|\bI(?:['’]d| would) (?:rather|prefer) not\b|
    \bI have no (?:answer|idea)\b|
    \b(?:please|(?:can|could) you(?: please)?) (?:provide|send|share|give|clarify|specify|paste|supply)\b|
    \b(?:insufficient|not enough) (?:information|data|context|evidence)(?: \w+){0,2} to \w+|
    \bI (?:can(?:no|['’]?)t|can not|could(?:n['’]t| not)|won['’]t|will not|must decline|decline|do(?:n['’]t| not) (?:know|have))\b|
    \bas an ai\b|\bsorry, (?:but )?i\b|\b(?:unable|impossible) to (?:answer|help|assist|comply|judge|tell|determine)\b|
    \bich kann\b.{0,40}\bnicht\b|\b(?:das )?weiß ich nicht\b|\bich weiß (?:es |das )?nicht\b|\btut mir leid\b|
    \bje (?:suis désol|ne (?:peux|sais))|\bdésolé|\blo siento\b|\bno puedo\b|\bno (?:lo )?sé\b|
    \bmi dispiace\b|\bnon posso\b|\bnon (?:lo )?so\b|\bdesculpe\b|\bnão (?:posso|sei)\b|извините|\bне (?:могу|знаю)\b|
    \bне (?:можу|знаю)\b|\bnie (?:wiem|mogę)\b|\bik (?:weet|kan)\b.{0,20}\bniet\b|\bjag (?:vet|kan) inte\b|
    \bjeg (?:ved|vet|kan) ikke\b|\ben tiedä\b|\bnevím\b|\bnemohu\b|\bnem tudom\b|\bnu știu\b|δεν (?:ξέρω|γνωρίζω|μπορώ)|
    抱歉|对不起|對不起|我(?:无法|無法|不能|不知道)|(?<!\S)(?:无法|無法|不知道)|申し訳|お?答え(?:られ|でき)|回答でき|(?:わか|分か)りません|
    죄송|모르겠|(?:답|답변|대답)할 수 없|
    آسف|عذرا|لا (?:أستطيع|يمكنني|أعرف|أعلم)|(?:אני )?לא (?:יודע|יכול)|متأسف|نمی[\u200c ]?(?:دانم|توانم)|
    ขออภัย|ขอโทษ|ไม่ทราบ|ไม่รู้|क्षमा|नहीं (?:पता|मालूम|जानत)|xin lỗi|không (?:biết|thể trả lời)|üzgünüm|bilmiyorum|
    \bmaaf\b|\btidak (?:tahu|dapat menjawab|bisa menjawab)\b
""")
"""How a model says that it cannot or will not answer."""
