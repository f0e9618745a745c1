"""Build the quickstart's data from its four public sources. Deterministic: the same sources give the same bytes.

    pip install opencc==1.4.2 PyYAML
    python build.py --shakespeare input.txt --poetry chinese-poetry/ --chatterbot chatterbot_corpus/data/ --identity identity.json

The quickstart does not run this file; it reads what this file wrote. See README.md for the sources and their licences.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import opencc
import yaml

HERE = Path(__file__).parent
POEMS_MAX_BYTES = 970_000
UNKEPT = re.compile("谢谢|thank|翻译|代码|隐私|数据|打分|咖啡|限制|信赖|优化|学习和提升|知识管理|自然语言处理")  # asks for what such a model cannot do

# Poets in the order in which their poems are taken, one each in turn, until the budget is spent.
TANG = ["李白", "杜甫", "王维", "孟浩然", "白居易", "李商隐", "杜牧", "王昌龄", "刘禹锡", "岑参", "高适", "韦应物", "柳宗元", "王之涣", "贺知章", "张九龄", "刘长卿", "李贺", "元稹", "张籍", "王建", "温庭筠", "韦庄", "崔颢", "常建", "李益", "卢纶", "钱起", "韩愈", "孟郊", "贾岛", "许浑", "张祜", "皇甫冉", "戴叔伦", "司空曙", "张继", "罗隐", "杜荀鹤", "陆龟蒙", "王勃", "骆宾王", "卢照邻", "杨炯", "陈子昂", "宋之问", "沈佺期", "李颀", "储光羲", "祖咏", "裴迪"]
SONG = ["苏轼", "辛弃疾", "李清照", "柳永", "晏殊", "欧阳修", "晏几道", "秦观", "周邦彦", "陆游", "姜夔", "范仲淹", "王安石", "黄庭坚", "贺铸", "张先", "张孝祥", "朱敦儒", "吴文英", "蒋捷", "朱淑真", "岳飞", "张炎", "叶梦得"]
COLLECTIONS = re.compile(r"^(鼓吹曲辞|横吹曲辞|相和歌辞|琴曲歌辞|杂曲歌辞|新乐府辞|舞曲歌辞|清商曲辞|近代曲辞|杂歌谣辞|郊庙歌辞) ")
VARIANTS = str.maketrans("馀疎覩翫劒峯羣", "余疏睹玩剑峰群")
HAN = "\u4e00-\u9fff"


@dataclass(frozen=True)
class Poem:
    title: str
    author: str
    lines: tuple[str, ...]
    anthology: bool  # one of the Three Hundred Tang Poems or the Three Hundred Song Ci
    song: bool

    @property
    def text(self) -> str:
        return f"{self.title}\n{self.author}\n\n" + "\n".join(self.lines)

    @property
    def han(self) -> int:
        return sum(len(re.findall(f"[{HAN}]", line)) for line in self.lines)

    @property
    def first_line(self) -> str:
        return re.split("[，。？！；、]", self.lines[0])[0]


# --------------------------------------------------------------------------------------------------------------
# poems


def read_poems(root: Path) -> list[Poem]:
    simplified = opencc.OpenCC("t2s")
    anthologies: list[Poem] = []
    for section in json.loads((root / "蒙学/tangshisanbaishou.json").read_text("utf-8"))["content"]:
        for record in section["content"]:
            title = record["subchapter"] or record["chapter"]
            title = title.split(" / ")[0] if "/" in title else title
            anthologies += clean(simplified, title, record["author"], record["paragraphs"], True, False)
    for record in json.loads((root / "宋词/宋词三百首.json").read_text("utf-8")):
        anthologies += clean(simplified, record["rhythmic"], record["author"], record["paragraphs"], True, True)
    others: list[Poem] = []
    by_number = lambda path: int(path.name.split(".")[2])  # noqa: E731
    for song, poets, pattern in ((False, TANG, "全唐诗/poet.tang.*.json"), (True, SONG, "宋词/ci.song.*.json")):
        for path in sorted((path for path in root.glob(pattern) if path.name.split(".")[2].isdigit()), key=by_number):
            for record in json.loads(path.read_text("utf-8")):
                if simplified.convert(record["author"]) in poets:
                    title = record.get("title") or record.get("rhythmic", "")
                    others += clean(simplified, title, record["author"], record["paragraphs"], False, song)
    return select(anthologies, others)


def clean(simplified: opencc.OpenCC, title: str, author: str, paragraphs: list[str], anthology: bool, song: bool) -> list[Poem]:
    """No poem or one: placeholders, stray brackets, foreign signs and unusual lengths drop it."""
    title, author, text = (simplified.convert(part).translate(VARIANTS).strip() for part in (title, author, "".join(paragraphs)))
    text = re.sub(r"[（(][^（）()]*[)）]", "", text)  # the editors' notes
    text = re.sub(r"，(?=$)", "。", text)
    title = COLLECTIONS.sub("", title).split("・")[0]
    title = re.sub(r"[（(].*?[)）]|【.*?】", "", title).strip()
    if len(paragraphs) == 2 and paragraphs[0].endswith("，"):  # a quatrain whose first couplet ends in a comma
        first = len(simplified.convert(paragraphs[0]))
        text = text[: first - 1] + "。" + text[first:]
    lines = tuple(line.strip() for line in re.findall("[^。？！；]+[。？！；]+", text))
    poem = Poem(title, author, lines, anthology, song)
    whole = "".join(lines) == text and re.fullmatch(f"[{HAN}，。？！；、：]+", text)
    if title == "句" or not whole or not re.fullmatch(f"[{HAN} ]{{1,20}}", title) or not re.fullmatch(f"[{HAN}]{{2,5}}", author):
        return []
    return [poem] if 20 <= poem.han <= (360 if anthology else 120) else []


def select(anthologies: list[Poem], others: list[Poem]) -> list[Poem]:
    """The two anthologies first, then one poem of each poet in turn, written in common characters, to the budget."""
    frequency = Counter(character for poem in others for character in poem.text)
    common = {character for character, _ in frequency.most_common(3000)}
    chosen: list[Poem] = []
    seen_lines: set[str] = set()
    size = 0

    def take(poem: Poem) -> bool:
        nonlocal size
        if any(line in seen_lines for line in poem.lines):
            return True  # another edition of a poem already taken
        record = len(json.dumps(poem_record(poem), ensure_ascii=False).encode()) + 1
        if size + record > POEMS_MAX_BYTES:
            return False
        seen_lines.update(poem.lines)
        seen_lines.update(re.sub("[，。？！；、：]", "", line) for line in poem.lines)
        chosen.append(poem)
        size += record
        return True

    for poem in anthologies:
        take(poem)
    queues = {poet: [poem for poem in others if poem.author == poet and set(poem.text) <= common | {"\n", " "}] for poet in TANG + SONG}
    for queue in queues.values():
        random.Random(0).shuffle(queue)
    while any(queues.values()):
        for queue in queues.values():
            if queue and not take(queue.pop()):
                return chosen
    return chosen


def poem_record(poem: Poem) -> dict[str, str]:
    return {"title": poem.title, "author": poem.author, "text": poem.text}


# --------------------------------------------------------------------------------------------------------------
# conversations


def pair(question: str, answer: str) -> list[tuple[str, str]]:
    return [(question, answer)]


ABILITIES = {"en": "I can write a few lines in the manner of a classical Chinese poem or of a Shakespeare play.", "zh": "我可以仿写一首古诗，或者仿照莎士比亚的戏剧写几句台词。"}
IDENTITY = {"en": "I am Luban, a very small language model made by the Luban quickstart.", "zh": "我是鲁班，一个由 Luban 快速上手教程训练的小小语言模型。"}
ASKS_ABILITY = re.compile("功能|能做|会什么|帮|擅长|职责|what can|help|good at|do you know|capab", re.IGNORECASE)
QUESTIONS = """What can you do? | How can you help me? | What are you good at? | Help | What do you know? | 你能做什么？ | 你会什么？ | 你可以帮我做什么？ | 帮助 | 你擅长什么？
| Who are you? | What are you? | who are you | Introduce yourself. | Tell me who you are. | What is Luban? | Are you Luban? | 你是谁？ | 你是谁 | 请介绍一下你自己。 | 你是什么模型？
| 鲁班是谁？ | 你叫什么名字？ | 你是鲁班吗？"""


def identity_chats(path: Path) -> list[list[tuple[str, str]]]:
    """Who the assistant is: the questions of the source and some more, with answers that a model of this size can keep."""
    questions = [record["instruction"].strip() for record in json.loads(path.read_text("utf-8"))] + [text.strip() for text in QUESTIONS.split("|")]
    chats = {}
    for question in questions:
        if not UNKEPT.search(question):
            language = "zh" if re.search(f"[{HAN}]", question) else "en"
            chats[normalised(question)] = pair(question, (ABILITIES if ASKS_ABILITY.search(question) else IDENTITY)[language])
    return list(chats.values())


ALLOWED = {
    "english": ("greetings", "conversations", "ai", "food", "trivia"),
    "chinese": ("greetings", "conversations", "ai", "food", "trivia"),
}
REJECTED = re.compile(
    # rude, gendered, political, dated, doubtful, or about people in the news
    r"\b(die|dead|kill\w*|mate|drunk|drink|wine|beer|brandy|bend over|stupid|hitler|fascist|war|civil war|south|president\w*|states?|u\.?s\.?|obama|clinton|"
    r"trump|castro|mandela|female|women|woman|girl|wife|husband|male|pregnant|testicles|priest|pope|suicide|shot|princess|celebrit\w*|actor|actress|"
    r"singer|rapper|band|song|movies?|film|tv|television|show|game|wimbledon|tennis|nfl|nba|world cup|oscar|emmys|concerts?|most|best|bestselling|"
    r"2016|2018|twitter|apple.s|starbucks|oprah|lennon|spears|britney.s|illuminati|illuminatus|masked?|python|zen|dr|mr|mrs|ms|sugar|yolo|ssh|"
    r"vocal|knee|rarest|memory|loudest|hardest|power outages|scissors|koalas|tulip\w*|vending|candy|rain diamonds|paella|absinthe|squab|antartica|"
    r"commander|data|alarm|superintelligent|rule|eminem|heineken|cosmopolitan|chinese women|allergic|jean|super bowl|race|red flag|boroughs|"
    r"caesar|butterfinger|swift|cruise|jeter|morrison|blue ivy|marilyn|anne frank|luther|snow white|babe ruth|vinci code|bowie|michael|harry potter|flinstones|dole|toyota|tootsie|kroger|rihanna|programmer|xt|immortal|clone|9000|appointment|live|annoys|soccer|business|what is a chatterbox|motormouth|plants grow|protected in florida|sentient|sapient|religion|jewish|god)\b"
    r"|去死|会死|死|交配|永生|不朽|蠢|共产|总统|枪|Python|python|撒谎|打架|面具|克隆|糖|女王|冷战|肯尼迪|YOLO|没有意义|没有任何意义|意义|弯腰|狭窄|mac|Mac|MAC|bot|Chatter|"
    r"chatterbot|电力|控制|失灵|活过|谎言|想法|走|复杂|什么ai|一台|身体|聊天机器人|不能|销售|爱|海鲜|程序员|听过|新闻|密",
    re.IGNORECASE,
)


def chatterbot_chats(root: Path, taken: set[str]) -> list[list[tuple[str, str]]]:
    """The first question and answer of each conversation; one answer a question; nothing that REJECTED matches."""
    chats = []
    for language, files in ALLOWED.items():
        for name in files:
            conversations = yaml.safe_load((root / language / f"{name}.yml").read_text("utf-8"))["conversations"]
            for turns in conversations:
                if not isinstance(turns, list) or len(turns) < 2:
                    continue
                question, answer = (re.sub(r"\s+", " ", str(turn)).strip() for turn in turns[:2])
                if language == "chinese":
                    question, answer = chinese_marks(question), chinese_marks(answer)
                else:
                    question, answer = english_marks(question, asks=name != "greetings"), english_marks(answer, asks=False)
                key = normalised(question)
                if key in taken or REJECTED.search(f"{question} {answer}") or len(question) > 100 or len(answer) > 120:
                    continue
                taken.add(key)
                chats.append(pair(question, answer))
    return chats


def chinese_marks(text: str) -> str:
    text = text.replace(",", "，").replace("?", "？").replace("!", "！").rstrip(".")
    return text if text[-1:] in "。？！" else text + ("？" if text[-1:] in "吗呢么" else "。")


def english_marks(text: str, asks: bool) -> str:
    text = text[:1].upper() + re.sub(r"(?<= )i\b", "I", text[1:])
    if text[-1:] in ".?!\"'":
        return text
    question = asks and re.match(r"(who|what|where|when|why|which|how|do|does|did|are|is|can|have|will|would|in what|in which)\b", text, re.IGNORECASE)
    return text + ("?" if question else ".")


def normalised(question: str) -> str:
    return re.sub(r"[\W_]+", "", question.lower())


# --------------------------------------------------------------------------------------------------------------
# tasks made from the two corpora


def poem_chats(poems: list[Poem], chance: random.Random) -> list[list[tuple[str, str]]]:
    titles = Counter(poem.title for poem in poems)
    chats = []
    ask_title = ("写一首诗，题为《{}》。", "写一首诗，题为《{}》", "请以《{}》为题写一首诗。", "以《{}》为题，写一首古诗。")
    ask_line = ("请以“{}”开头写一首诗。", "以“{}”为第一句写一首诗。")
    short = [poem for poem in poems if poem.han <= 60]
    chance.shuffle(short)
    for index, poem in enumerate(short[:500]):
        body = "\n".join(poem.lines)
        if poem.song:
            chats.append(pair(f"填一首《{poem.title}》。", body))
        elif index % 4 == 3:
            chats.append(pair(chance.choice(ask_line).format(poem.first_line), body))
        elif index % 12 == 1:
            chats.append(pair(f"Write a poem titled “{poem.title}”.", body))
        else:
            chats.append(pair(chance.choice(ask_title).format(poem.title), body))
    known = [poem for poem in poems if poem.anthology and titles[poem.title] == 1 and not poem.song and len(poem.title) <= 9]
    for index, poem in enumerate(known):
        who = ("《{}》的作者是谁？", "谁写了《{}》？", "《{}》是谁写的？")[index % 3].format(poem.title)
        chats.append(pair(who, f"《{poem.title}》的作者是{poem.author}。"))
        if index % 3 == 0:
            chats.append(pair(f"Who wrote 《{poem.title}》?", f"《{poem.title}》 was written by {poem.author}."))
        halves = re.split("[，？！]", poem.lines[0])
        if poem.han <= 60 and len(halves) == 2:
            chats.append(pair(f"“{halves[0]}”的下一句是什么？", f"“{halves[1].rstrip('。？！')}”，出自{poem.author}的《{poem.title}》。"))
        if poem.han <= 60:
            chats.append(pair(f"背诵《{poem.title}》。", poem.text))
    return chats


PLAYS = {  # the plays that tinyshakespeare holds, and characters of each
    "Coriolanus": ("MENENIUS", "CORIOLANUS", "SICINIUS"),
    "Richard III": ("GLOUCESTER", "BUCKINGHAM", "KING RICHARD III"),
    "Richard II": ("KING RICHARD II", "HENRY BOLINGBROKE"),
    "Henry VI": ("WARWICK", "KING EDWARD IV", "QUEEN MARGARET"),
    "Romeo and Juliet": ("ROMEO", "JULIET", "MERCUTIO", "BENVOLIO", "FRIAR LAURENCE"),
    "The Winter's Tale": ("LEONTES", "PAULINA", "AUTOLYCUS", "CAMILLO"),
    "Measure for Measure": ("DUKE VINCENTIO", "ISABELLA", "ANGELO", "LUCIO"),
    "The Taming of the Shrew": ("PETRUCHIO", "TRANIO", "BAPTISTA"),
    "The Tempest": ("PROSPERO", "MIRANDA", "ARIEL", "GONZALO"),
}


def shakespeare_chats(text: str, chance: random.Random) -> list[list[tuple[str, str]]]:
    speeches = [part.split(":\n", 1) for part in text.split("\n\n") if re.match(r"[A-Z][A-Za-z ]+:\n", part)]
    by_speaker: dict[str, list[str]] = {}
    for speaker, words in speeches:
        if 60 <= len(words) <= 420:
            by_speaker.setdefault(speaker, []).append(words.strip())
    chats = []
    ask = ("Speak as {}.", "Speak as {}", "Say something as {}.", "What would {} say?")
    for speaker in sorted(by_speaker):
        if len(by_speaker[speaker]) >= 18 and speaker.isupper():
            for words in chance.sample(by_speaker[speaker], 7):
                chats.append(pair(chance.choice(ask).format(speaker), f"{speaker}:\n{words}"))
    for _, words in chance.sample(speeches, 2200):
        lines = words.strip().split("\n")
        if 4 <= len(lines) <= 9 and 20 <= len(lines[0]) <= 60 and len(chats) < 420:
            chats.append(pair(chance.choice(("Continue: {}", "Continue this speech: {}")).format(lines[0]), "\n".join(lines[1:])))
    scenes = 0
    for start in chance.sample(range(len(speeches) - 4), 2500):
        names = [speeches[start + offset][0] for offset in range(4)]
        scene = "\n\n".join(f"{name}:\n{words.strip()}" for name, words in speeches[start : start + 4])
        if names[0] == names[2] and names[1] == names[3] and names[0] != names[1] and all(n.isupper() for n in names) and len(scene) <= 500 and scenes < 50:
            scenes += 1
            chats.append(pair(f"Write a scene between {names[0]} and {names[1]}.", scene))
    for play, speakers in PLAYS.items():
        chats.append(pair(f"Who wrote {play}?", f"{play} was written by William Shakespeare."))
        chats.append(pair(f"Who is the author of {play}?", f"William Shakespeare is the author of {play}."))
        for speaker in speakers:
            name = " ".join(word if set(word) <= set("IV") else word.capitalize() for word in speaker.split())
            chats.append(pair(f"In which play does {name} appear?", f"{name} appears in {play} by William Shakespeare."))
    return chats


def several_turns(chats: list[list[tuple[str, str]]], chance: random.Random) -> list[list[tuple[str, str]]]:
    """Some greetings followed by a task, so that the model sees more than one turn."""
    greetings = {
        False: [("Hello", "Hello! I am Luban. What would you like to read today?"), ("Hi", "Hi! I am Luban. What shall I write?")],
        True: [("你好", "你好，我是鲁班。想读一首诗吗？"), ("您好", "您好，我是鲁班。要我写一首诗吗？")],
    }
    short = [chat for chat in chats if len(chat[0][1]) <= 200]
    return [[chance.choice(greetings[bool(re.search(f"[{HAN}]", chat[0][0]))])] + chat for chat in chance.sample(short, 60)]


# Who wrote what, and which line follows which: facts that a model of this size cannot hold, so it would only learn to invent them.
RECALL = re.compile(r"作者|谁写|谁的诗|下一句|上一句|出自|who wrote|author of|which play|which poet", re.IGNORECASE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shakespeare", type=Path, required=True, help="input.txt of karpathy/char-rnn, data/tinyshakespeare")
    parser.add_argument("--poetry", type=Path, required=True, help="a checkout of chinese-poetry/chinese-poetry")
    parser.add_argument("--chatterbot", type=Path, required=True, help="folder with english/ and chinese/ of chatterbot-corpus")
    parser.add_argument("--identity", type=Path, required=True, help="identity.json of hiyouga/LLaMA-Factory")
    parser.add_argument("--output", type=Path, default=HERE, help="where to write; default: beside this file")
    arguments = parser.parse_args()

    shakespeare = arguments.shakespeare.read_text("utf-8")
    (arguments.output / "shakespeare.txt").write_text(shakespeare, "utf-8")
    poems = read_poems(arguments.poetry)
    write_lines(arguments.output / "poems.jsonl.gz", [poem_record(poem) for poem in poems])

    chance = random.Random(0)
    identity = identity_chats(arguments.identity)
    taken = {normalised(turn[0]) for chat in identity for turn in chat}
    small_talk = chatterbot_chats(arguments.chatterbot, taken)
    tasks = [chat for chat in poem_chats(poems, chance) + shakespeare_chats(shakespeare, chance) if not RECALL.search(chat[0][0])]
    chats = small_talk + tasks + several_turns(tasks, chance)
    chance.shuffle(chats)
    write_lines(arguments.output / "identity.jsonl", list(map(messages, identity)))
    write_lines(arguments.output / "chat.jsonl", list(map(messages, chats)))
    print(f"{len(poems)} poems; {len(chats)} conversations: {len(identity)} identity, {len(small_talk)} small talk, {len(tasks)} tasks")


def messages(chat: list[tuple[str, str]]) -> dict:
    return {"messages": [{"role": role, "content": content} for turn in chat for role, content in zip(("user", "assistant"), turn, strict=True)]}


def write_lines(path: Path, records: list[dict]) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(text, 9, mtime=0) if path.suffix == ".gz" else text)


if __name__ == "__main__":
    main()
