"Answers are scored right: choices in free text, forms of benchmarks, metrics, intervals, bad rows."
import io, json, math, random, time, weakref
import datasets
import pytest
import torch
from PIL import Image
from nanovlm import evaluation
from nanovlm.evaluation import (LETTERS, METRICS, Lazy, anls, choice_prompt, clustered_error, evaluate,
                                evaluate_choices, load_choices, normalise_vqa, parse_choice, predict,
                                read_choice, relaxed_accuracy, report, score, text_baselines, vqa_accuracy,
                                wilson)

# Choices: what a reply to these options says; the forms are those in which models answer

OPTIONS = ["a cat", "a dog", "a red car", "nothing"]
REPLIES = {
    1: ["B", "b", "(B)", "B.", "[B]", "**B**", "$B$", "\\boxed{B}", "`B`", "B\n", " B ", '"B"',
        "<answer>B</answer>", "B. a dog", "B) It barks.", "B: a dog", "a dog", "A dog", "A dog.",
        "**a dog**", "(B) a dog", "**B. a dog**", "B - a dog", "B a dog", "B\nbecause it barks",
        "B\n\nThe animal in the picture barks. A cat would not.", "B, because it barks",
        "B because it barks", "B, a dog is shown", "The answer is B.",
        "The answer is B because it barks", "Answer: (B)", "Answer: B", "**Answer:** B",
        "Answer: **B**", "answer: b", "ANSWER: B", "Answer: $B$", "Answer B",
        "The correct answer is **B**.", "The correct choice is **B**.",
        "The correct option is (B) a dog.", "The correct answer is option B: a dog.",
        "The final answer is $\\boxed{B}$.", "The final answer is: \\boxed{\\text{B}}",
        "B is correct", "B is correct.", "(B) is the correct answer.", "Option B is correct.",
        "B is the best description", "So it must be B", "So it must be B.", "It's B.", "It’s B",
        "It is B.", "I choose option B", "I choose B.", "I think B", "I think it's B.",
        "I'd go with B.", "My answer would be B.", "I believe the answer is B",
        "The answer to the question is B.", "The option that best describes the picture is B.",
        "Option B", "Option (B)", "option b", "The animal barks, so B.",
        "Therefore, the answer is B.", "Looking at the picture, option B fits best.",
        "Answer: A. Actually, answer: B", "Option A is wrong; the answer is B",
        "A. No, wait, it is B.", "The answer is A. Correction: the answer is B.",
        "It can't be A, so it must be B.", "A is incorrect. B is correct.", "It is not A. It is B.",
        "The answer is B, not A.", "A is tempting, but B is correct.",
        "A cat has other ears. The answer is B",
        "Let me look at the picture. A dog sits on the grass.\n\nB",
        "The picture shows a dog.\n\n**Answer: B**",
        "First, the animal is brown.\nSecond, it barks.\nSo the answer is (B).",
        "A. a cat\nB. a dog\nC. a red car\nD. nothing\nAnswer: B",
        "A cat is not shown, so the correct answer is B. a dog", "### Answer\nB",
        "The correct letter is B.", "\\[\n\\boxed{B}\n\\]", "B.\n", "Answer = B",
        "B, since it barks", "Based on the picture, the answer is: B", "The answer is A? No, B.",
        "B (a dog)", "Answer:B", "Answer : B", "Option B: a dog", "Choice: B", "The answer is “B”.",
        "The answer is 'B'.", "B is the answer", "The right answer is B", "I'll go with option B",
        "My final choice: B", "Sure, B.", "That corresponds to B.", "Ans. B",
        "B is the correct choice because A is a cat",
        "B: a dog\n\nExplanation: Option A is incorrect because the animal barks. Option C is a car.",
        "Answer: C or B? I think B.", "The answer is B) a dog",
        "So C is wrong, and the answer must be B", "The answer is B rather than A",
        "It's either A or B, but I think B.", "A) is wrong. B) is right.",
        "The answer is option (B), not (A).",
        "A\n\nExplanation: the animal barks, therefore the answer is B.",
        "The answer is not A, it is B.", "A and C are wrong. B is correct",
        "The answer is definitely B", "The answer is most likely B.", "Answer is: **B. a dog**",
        "The answer should be B", "b.", "(b).", "<think>Perhaps it is A</think>B",
        "<think>A?</think>\n\nThe answer is B.", "Final Answer - B",
        "I'd choose option B over option A.", "Between A and B, I'd go with B.",
        "A because of the ears. Wait, B.", "A. Sorry, I meant B.", "A. Hmm, B is better.",
        "A? No, B.", "Answer: A. Wait, let me look again: it shows a dog. B",
        "Answer: (A) a cat\nCorrection: (B) a dog", "The answer to this question is option B.",
        "Given the options, B is the most appropriate answer.",
        "I am confident that the answer is B", "The answer is choice B",
        "The correct statement is B.",
        "B should be the answer", "Answer → B", "B; it barks", "Assistant: B", "boxed{B}", "A? B!",
        "['B']", '{"answer": "B"}', "Correct option: B", "I'm going with B.", "(b) a dog", "<b>B</b>",
        "I first thought it was A, but the answer is B.", "The answer isn't A. It's B.",
        "It is definitely not A. The answer must be B.", "Answer: A... no, B.", "$\\text{B}$",
        "The answer is a dog", "It's a dog", "So a dog", "I think a dog"],
    0: ["A", "The answer is A", "The answer is A because it purrs", "Option A is correct",
        "A, because it purrs", "(A) a cat", "A\nThe animal purrs.", "A. Cats purr.",
        "Answer: A\nThe cat purrs.", "It is A.", "The answer is B. Actually, it is A.", "Answer: A cat"],
    3: ["Nothing", "D", "D. Nothing"],
    None: ["A dog is in the picture", "I cannot answer a question",
        "Both A and B", "E", "Definitely a dog", "An animal", "", "A, B, C or D?", "A or B",
        "The answer is A or B.", "The answer is not A", "Option A is wrong", "It isn't A",
        "I see nothing like that.", "Of A, B, C and D it is red.", "A dog.\nIt barks.",
        "Neither A nor B is correct", "A is wrong", "A. a cat\nB. a dog\nC. a red car\nD. nothing",
        "A\nB\nC\nD", "A B-52 bomber", "A+",
        "The correct answer is a dog that barks", "Is it A?", "The answer could be A, B or C.",
        "Not A.", "A dog is right of a cat", "The answer isn't A.", "The answer cannot be A",
        "If it were a cat, the answer would be A", "(A) a cat (B) a dog (C) a red car",
        "A cat or a dog", "A. B. Smith", "I'm not sure", "A. On second thought, B.",
        "A, but B fits as well", "So not A", "A and B are wrong", "The incorrect answer is A",
        "A is not the answer", "The answer is definitely not A", "The answer must be either A or B",
        "A... or not", "Answers may vary", "A5", "Vitamin A is in carrots"],
}
ANIMALS = ["cat", "dog", "bird", "fish"]
READ = { # other letters are mentioned, after the claim or before; words that models use
    2: ["C is the answer. A is a cat.", "(C) is the right answer. B barks.", "C is the best answer\nA: cat",
        "C is the correct answer.\n\nA. cat: wrong.", "C is the answer - A is a cat",
        "C must be the answer. B has fur.", "The correct answer is C. Students often answer A.",
        "The correct answer is C. Some people say A.", "The correct answer is C (many choose A).",
        "C is correct; the common answer A is a trap.", "C. The answer A is for cats.",
        "I choose C. You might think B, but dogs have fur.", "I select C. I think A is a cat.",
        "C. I say A is a cat.", "C. I think that A is a cat.", "C. So A is out.", "C. It is A that has fur.",
        "The answer is C. Let me know if you think A is better.", "Many would say A, but the answer is C.",
        "The answer could be A or C, but C is more likely.", "Between A and C, C is the better choice.",
        "Answer: C\n\nQuestion: what is it?\nA. x\nB. y\nAnswer: A", "C\n\nQuestion 2: ...\nB",
        "The answer is C.\nHuman: Are you sure it is not A?", "The answer is C.\n\nUser: A?\nAssistant: A",
        "I was wrong to say A. C.", "Although I first said the answer is A, the answer is C",
        "It turns out that the answer is C.",
        "If I had to guess, I'd say C.", "Without doubt the answer is C.",
        "C fits best.", "My guess is C", "C it is.", "Ans: C", "Letter: C", "Selected: C", "Correct: C",
        "C—it sings", "C (not A)", "C rather than A", "C instead of A.", "答案：C", "答案是 C", "Antwort: C",
        "La respuesta es C.", "Die Antwort ist C.", "La réponse est C.", "Only C is left.", "That leaves C.",
        "It is a bird: C", "The answer could be C", "Correct option → C", "Bird (C)", "bird - C",
        "The answer is bird.", "a bird", "It is a bird.", "A BIRD.", "Answer: a bird", "So a bird",
        "The bird", "This is a bird"],
    None: ["There is no correct answer. A is a cat.", "The answer is C. In contrast, A is right for cats.",
           "The answer is C. Option A is the answer for cats.", "This is a",
           "The answer is C for the bird, whereas the answer is A for the cat.",
           "I don't think A is correct.",
           "I do not believe it is A.", "I doubt that the answer is A.",
           "It is unlikely that the answer is A.",
           "No way it is A.", "It's hard to say whether the answer is A.", "Point A is right.",
           "None of A, B, C, D is correct.", "Suppose the answer is A. Then there is fur: contradiction.",
           "not a dog", "It is not a bird.", "A bird or a fish", "Is it a bird?", "I see a bird in a tree"],
}
TALKS = [(reply, wanted) for wanted, replies in READ.items() for reply in replies]

@pytest.mark.parametrize("reply, wanted", TALKS, ids=[repr(reply)[:60] for reply, _ in TALKS])
def test_what_else_is_said_is_no_claim(reply, wanted): assert parse_choice(reply, ANIMALS) == wanted

@pytest.mark.parametrize("options, reply, wanted", [
    (["Paris", "Rome"], "The answer is Rome.", 1), (["Figure A", "Figure B"], "The answer is Figure B.", 1),
    (["Figure A", "Figure B"], "The answer is not Figure B.", None), (["2", "3"], "There are 3.", 1),
    (["Yes", "No"], "No, it is not.", 1), (["Yes", "No"], "The answer is yes.", 0),
    (["2", "3"], "Option 2 has 3", None), ([], "A", None), ([2, 3], "3", 1),
    (["rise", "fall"], "It will fall.", 1)])
def test_the_text_of_one_option_is_read(options, reply, wanted): assert parse_choice(reply, options) == wanted

@pytest.mark.parametrize("part", ["if ", "<think>", "answer ", "A, ", " ", "\n", "not ", "I think ", ". "])
def test_a_long_reply_is_read_at_once(part):
    start = time.process_time()
    assert parse_choice(part * 30_000 + "\nThe answer is B.", OPTIONS) == 1
    assert time.process_time() - start < 2

CASES = [(reply, wanted) for wanted, replies in REPLIES.items() for reply in replies]

def test_the_table_is_long(): assert len(CASES) > 200

@pytest.mark.parametrize("reply, wanted", CASES, ids=[repr(reply)[:60] for reply, _ in CASES])
def test_a_reply_is_read(reply, wanted): assert parse_choice(reply, OPTIONS) == wanted

@pytest.mark.parametrize("reply, wanted", CASES[::7])
def test_a_reply_is_read_the_same_in_any_box(reply, wanted):
    if "\n" in reply or not reply: return
    for form in ("  {}\n", "**{}**", "{} "): assert parse_choice(form.format(reply), OPTIONS) == wanted

@pytest.mark.parametrize("options, reply, wanted", [
    (["B", "A", "C"], "A", 0), (["B", "A", "C"], "The answer is A", 0), (["B", "A", "C"], "C. C", 2),
    (["D", "E"], "E", 1), (["a", "b"], "b", 1), (["1", "2", "3"], "2", 1), (["2", "1"], "1", 1),
    (["dog", "cat"], "A dog", 0), (["red car", "a red car"], "a red car", 1), (["$x$", "$y$"], "$y$", 1),
    (["carrots", "a dog"], "Vitamin A is in carrots", None), (["yes", "no"], "C", None),
    ([*"pqrstuvwxy"], "I think it is a dog", None), ([*"pqrstuvwxy"], "I", 8), ([*"pqrstuvwxy"], "J.", 9)])
def test_letters_come_before_texts(options, reply, wanted): assert parse_choice(reply, options) == wanted

def test_a_model_that_is_always_right_scores_everything_where_options_are_letters():
    dice = random.Random(0)
    for _ in range(100):
        options = dice.sample("ABCD", 4)
        right = dice.randrange(4)
        assert parse_choice(LETTERS[right], options) == right

# Benchmarks

COLORS = ["Red", "Green", "Blue"]
def row_of(**columns): return dict(question="Which?", choices=COLORS, answer=2) | columns

@pytest.mark.parametrize("gold, options, wanted", [
    (2, COLORS, 2), (2.0, COLORS, 2), ("2", COLORS, 2), (" 2 ", COLORS, 2), ("C", COLORS, 2),
    ("c", COLORS, 2),
    ("(C)", COLORS, 2), ("C.", COLORS, 2), ("C)", COLORS, 2), ("C. Blue", COLORS, 2), ("(C) Blue", COLORS, 2),
    ("Blue", COLORS, 2), ("blue", COLORS, 2), ("0", COLORS, 0), ("Bear", ["Ant", "Cow", "Bear"], 2),
    ("4", ["2", "4", "6"], 1), ("A", ["B", "A", "C"], 0), (0, ["1", "0"], 0)])
def test_gold_is_read_in_all_its_forms(gold, options, wanted):
    assert read_choice(row_of(choices=options, answer=gold))["answer"] == wanted

@pytest.mark.parametrize("gold", ["Brown", "Banana", "3", 3, -1, "D", "", None, "A or B"])
def test_a_gold_that_is_no_option_is_refused(gold):
    with pytest.raises(ValueError, match="none of the 3 options") as error: read_choice(row_of(answer=gold))
    assert "\n" not in str(error.value)

@pytest.mark.parametrize("columns", [
    dict(choices=None, options="['Red', 'Green', 'Blue']"), dict(choices='["Red", "Green", "Blue"]'),
    dict(choices=None, A="Red", B="Green", C="Blue", D=None),
    dict(choices=dict(text=COLORS, label=["A", "B", "C"])),
    dict(choices=None, choice_a="Red", choice_b="Green", choice_c="Blue"),
    dict(choices=None, option_a="Red", option_b="Green", option_c="Blue"),
    dict(choices=None, question="Which?\nOptions: A: Red, B: Green, C: Blue"),
    dict(choices=None, question="Which?\nChoices:\n(A) Red\n(B) Green\n(C) Blue"),
    dict(choices=None, question="Which?\nA. Red\nB. Green\nC. Blue\nPlease answer directly with only the "
                                "letter of the correct option and nothing else.")])
def test_options_are_read_in_all_their_forms(columns):
    found = read_choice(row_of(**columns))
    assert found["options"] == COLORS and found["question"] == "Which?"

@pytest.mark.parametrize("count", [2, 3, 5, 9, 10])
def test_two_to_ten_options(count):
    options = [f"thing {n}" for n in range(count)]
    found = read_choice(row_of(choices=options, answer=LETTERS[count - 1]))
    assert found["answer"] == count - 1 and f"{LETTERS[count - 1]}. thing" in choice_prompt("Which?", options)

@pytest.mark.parametrize("count", [1, 11])
def test_other_numbers_of_options_are_refused(count):
    with pytest.raises(ValueError, match="between 2 and 10"):
        read_choice(row_of(choices=[f"thing {n}" for n in range(count)], answer=0))

@pytest.mark.parametrize("columns", [
    dict(prompt="Which?", choices=COLORS, answer=0), dict(question="Which?", options=COLORS, target=0)])
def test_other_columns_are_named(columns):
    with pytest.raises(ValueError) as error: read_choice(columns)
    assert all(name in str(error.value) for name in columns) and "\n" not in str(error.value)

def test_context_reaches_the_prompt():
    row = row_of(hint="The map shows Rome.", lecture="Maps have a scale.", context=None)
    assert read_choice(row)["question"] == "Maps have a scale.\nThe map shows Rome.\nWhich?"
    assert read_choice(row_of(hint="  "))["question"] == "Which?"

LETTER_HINT = ("Please answer the question and provide the correct option letter, "
               "e.g., A, B, C, D, at the end.")
VALUE_HINT = ("Please answer the question requiring an integer answer and provide the final value, "
              "e.g., 1, 2, 3, at the end.")

@pytest.mark.parametrize("question", [
    f"Hint: {LETTER_HINT}\nQuestion: Which?", f"Hint: {LETTER_HINT} Question: Which?",
    f"Hint: {VALUE_HINT}\nQuestion: Which?",
    "Which?\nAnswer with the option's letter from the given choices directly.",
    "Which?\nPlease select the correct answer from the options above.", "<image>\nWhich?", "Question: Which?",
    "Which?\nPlease answer directly with only the letter of the correct option and nothing else."])
def test_there_is_one_order_in_a_prompt(question):
    assert read_choice(row_of(question=question))["question"] == "Which?"
    assert read_choice(row_of(choices=None,
        question=f"{question}\nOptions: A: Red, B: Green, C: Blue"))["options"] == COLORS

@pytest.mark.parametrize("question", [
    "Hint: the picture shows Rome.\nWhich?", "Choose the picture of a cat.",
    "Select the letter that is missing.",
    "Provide the name of the city.", "Answer the phone: who calls?"])
def test_what_is_no_order_stays(question):
    assert read_choice(row_of(question=question))["question"] == question

@pytest.mark.parametrize("columns, wanted", [
    (dict(image="one"), ["one"]), (dict(images=["one", None, "two"]), ["one", "two"]),
    (dict(image=None), []), ({}, []),
    (dict(images=[], image="one"), ["one"]), (dict(image="images/1.png", decoded_image="one"), ["one"]),
    (dict(image_1="one", image_2="two", image_3=None, image_10="ten"), ["one", "two", "ten"])])
def test_no_column_with_a_picture_is_ignored(columns, wanted):
    assert read_choice(row_of(**columns))["images"] == wanted

@pytest.mark.parametrize("columns, wanted", [
    (dict(choices=dict(text=COLORS, label=["1", "2", "3"]), answer="2"), 1),
    (dict(choices=dict(text=COLORS, label=[1, 2, 3]), answer=3), 2),
    (dict(choices=["True", "False"], answer=True), 0), (dict(choices=["False", "True"], answer=True), 1),
    (dict(answer=["C"]), 2), (dict(choices=[*COLORS, None], answer="B"), 1)])
def test_what_is_right_is_never_another_option(columns, wanted):
    assert read_choice(row_of(**columns))["answer"] == wanted

@pytest.mark.parametrize("columns", [
    dict(choices=["A. Red", "B. Green", "C. Blue"]), dict(choices=["(A) Red", "(B) Green", "(C) Blue"]),
    dict(choices=[dict(text=color) for color in COLORS]),
    dict(choices=None, question="Which?\nOptions: A. Red, B. Green, C. Blue"),
    dict(choices=None, question="Which?\nA. Red\nB. Green\nC. Blue\nAnswer:"),
    dict(choices="A: Red; B: Green; C: Blue")])
def test_options_are_bare(columns):
    found = read_choice(row_of(**columns))
    assert found["options"] == COLORS and found["question"] == "Which?"

@pytest.mark.parametrize("options", [["A. Smith", "Jones"], ["A. one", "C. three"], ["A", "B"]])
def test_what_is_no_letter_of_a_list_stays(options):
    assert read_choice(row_of(choices=options, answer=0))["options"] == options

@pytest.mark.parametrize("columns, message", [
    (dict(choices=["Red", None, "Blue"]), "missing .null"), (dict(choices=5), "no list: 5"),
    (dict(question="  "), "question is empty"), (dict(question=5), "no text: 5"),
    (dict(answer=dict(a=1)), "none of the 3"), (dict(answer=True), "none of the 3")])
def test_what_cannot_be_read_is_refused(columns, message):
    with pytest.raises(ValueError, match=message): read_choice(row_of(**columns))

@pytest.mark.parametrize("columns, wanted", [
    (dict(image_0="zero", image_1="one"), ["zero", "one"]),
    (dict(image="main", image_1="one"), ["main", "one"]),
    (dict(image_2="two", image_10="ten", image_1="one"), ["one", "two", "ten"])])
def test_numbered_pictures_are_all_shown(columns, wanted):
    assert read_choice(row_of(**columns))["images"] == wanted

def picture(seed=0, size=(64, 64)):
    file = io.BytesIO()
    random_bytes = random.Random(seed).randbytes(3 * size[0] * size[1])
    Image.frombytes("RGB", size, random_bytes).save(file, "png")
    return dict(bytes=file.getvalue(), path=None)

def benchmark(folder, rows, name="val"):
    datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    return str(folder)

def test_a_benchmark_is_read_row_by_row(tmp_path, monkeypatch):
    folder = benchmark(tmp_path, [row_of(image=picture(n)) for n in range(5)])
    read = []
    monkeypatch.setattr(evaluation, "read_choice", lambda row, numbered: read.append(row) or read_choice(row))
    choices = load_choices(folder)
    assert len(choices) == 5 and not read
    assert choices[4] == choices[-1] and len(read) == 2 and len([*choices]) == 5
    with pytest.raises(IndexError): choices[5]

@pytest.mark.parametrize("golds, wanted", [(["2", "4"], [0, 1]), (["2", "0"], [2, 0])])
def test_digits_are_texts_or_numbers_for_a_whole_benchmark(tmp_path, golds, wanted):
    "AI2D gives numbers of options, MathVista their texts."
    folder = benchmark(tmp_path, [row_of(choices=["2", "4", "6"], answer=gold) for gold in golds])
    assert [c["answer"] for c in load_choices(folder)] == wanted

@pytest.mark.parametrize("names, split, count", [
    (["mmstar"], None, 1), (["test-0"], None, 1), (["val-00000-of-00001", "test-00000"], "val", 1),
    (["validation", "train", "test-0", "test-1"], "test", 2),
    (["validation-0"], "val", 1), (["dev"], "validation", 1)])
def test_a_split_is_chosen(tmp_path, names, split, count):
    for name in names: benchmark(tmp_path, [row_of()], name)
    assert len(load_choices(str(tmp_path), split)) == count

def test_a_split_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "test").mkdir()
    benchmark(tmp_path / "test", [row_of()], "0000")
    with pytest.raises(ValueError, match="'val': choose one of test"): load_choices(str(tmp_path), "val")

def test_a_benchmark_with_other_columns_is_refused(tmp_path):
    with pytest.raises(ValueError, match="prompt, target"):
        load_choices(benchmark(tmp_path, [dict(prompt="Which?", target="A")]))

@pytest.mark.parametrize("name", ["photo", "img", "Image", "picture", "mask"])
def test_pictures_that_would_not_be_shown_are_refused(tmp_path, name):
    rows = datasets.Dataset.from_list([row_of(**{name: picture()})]).cast_column(name, datasets.Image())
    rows.to_parquet(tmp_path / "val.parquet")
    with pytest.raises(ValueError, match=f"pictures in {name}"): load_choices(str(tmp_path))

@pytest.mark.parametrize("golds, refused", [
    ([1, 2, 3, 1], True), (["1", "2", "3"], True), ([1.0, 3.0], True),
    ([0, 1, 2, 3], False), ([1, 2, 1], False)])
def test_golds_that_are_counted_from_1_are_refused(tmp_path, golds, refused):
    folder = benchmark(tmp_path, [row_of(answer=gold) for gold in golds])
    if not refused: assert len(load_choices(folder)) == len(golds)
    else:
        with pytest.raises(ValueError, match="counted from 1"): load_choices(folder)

def test_a_damaged_file_of_a_benchmark_is_named(tmp_path):
    benchmark(tmp_path, [row_of()], "val-0")
    damaged = tmp_path / "val-1.parquet"
    for data, message in ((b"", "val-1.*0 bytes"), ((tmp_path / "val-0.parquet").read_bytes()[:-9], "val-1")):
        damaged.write_bytes(data)
        with pytest.raises(ValueError, match=message): load_choices(str(tmp_path))
    benchmark(tmp_path, [row_of(kind="x")], "val-1")
    with pytest.raises(ValueError, match="val-1.*columns.*kind.*alike"): load_choices(str(tmp_path))

def test_a_benchmark_without_rows_is_named(tmp_path):
    datasets.Dataset.from_list([row_of()]).select([]).to_parquet(tmp_path / "val.parquet")
    with pytest.raises(ValueError, match="val.parquet has no rows"): load_choices(str(tmp_path))

# Metrics

@pytest.mark.parametrize("metric", METRICS)
def test_nothing_accepted_is_nothing_scored(metric): assert METRICS[metric]("x", []) == 0

@pytest.mark.parametrize("text, wanted", [
    ("The two dogs.", "2 dogs"), ("a dog", "dog"), ("An  apple\n", "apple"), ("dont", "don't"),
    ("couldnt've", "couldn't've"),
    ("1,000", "1000"), ("3.5", "3.5"), ("12.", "12"), ("yes!", "yes"), ("red/blue", "red blue"),
    ("red / blue", "red blue"),
    ("x-ray", "x ray"), ("none", "0"), ("Ten", "10"), ("eleven", "eleven"), ("A", "a"), ("the", "the"),
    ("Mr. Smith", "mr smith"),
    ("what's", "what's"), ("oclock", "o'clock"), ("(big)", "big"), ("", "")])
def test_vqa_normalisation(text, wanted): assert normalise_vqa(text) == wanted

@pytest.mark.parametrize("blue, wanted", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_leaves_one_out(blue, wanted):
    assert vqa_accuracy("Blue.", ["blue"] * blue + ["red"] * (10 - blue)) == pytest.approx(wanted)

def test_vqa_accuracy_of_an_empty_reply_is_nothing():
    assert vqa_accuracy("", ["a"] * 10) == 0 and vqa_accuracy("A",
        ["a"] * 10) == 1 and vqa_accuracy("two", ["2"]) == 1

@pytest.mark.parametrize("reply, answers, wanted", [
    ("hello", ["hello"], 1), (" Hello", ["hello "], 1), ("helo", ["hello"], 0.8), ("cat", ["dog"], 0),
    ("", ["nothing"], 0),
    ("abcd", ["abxy"], 0), ("12 May", ["12 May 1999", "12 may"], 1), ("1000", ["100"], 0.75)])
def test_anls(reply, answers, wanted): assert anls(reply, answers) == pytest.approx(wanted)

@pytest.mark.parametrize("reply, answer, right", [
    ("105", "100", True), ("95", "100", True), ("105.1", "100", False), ("-105", "-100", True),
    ("100", "-100", False),
    ("1,040", "1000", True), ("$10", "10", True), ("12%", "0.12", True), ("12 %", "12%", True),
    ("0", "0", True), ("0.01", "0", False),
    ("Yes.", "yes", True), ("about 100", "100", False), ("nan", "100", False), ("inf", "100", False),
    ("", "100", False)])
def test_relaxed_accuracy(reply, answer, right): assert relaxed_accuracy(reply, [answer]) == right

class Parrot:
    "Stands in for `generate`: every reply is the same text."
    def __init__(self, monkeypatch, processor, reply):
        self.batches = []
        ids = processor.answer(reply)
        def generate(model, input_ids, pixel_values, attention_mask, **kwargs):
            self.batches.append((len(input_ids), len(pixel_values)))
            return torch.tensor([ids] * len(input_ids))
        monkeypatch.setattr(evaluation, "generate", generate)

def turn(user="is it blue?", assistant="blue", source="color", **more):
    return dict(user=user, assistant=assistant, source=source) | more
def rows_of(*texts): return [dict(images=[picture(n)], texts=[*t]) for n, t in enumerate(texts)]

@pytest.mark.parametrize("metric, wanted, name", [
    ("exact_match", 0.5, "exact match"), ("vqa", 0.3, "VQA accuracy"), ("anls", 0.9, "ANLS"),
    ("relaxed", 0.5, "relaxed accuracy")])
def test_a_metric_is_chosen_and_named(model, processor, monkeypatch, metric, wanted, name):
    Parrot(monkeypatch, processor, "navy!" if metric == "anls" else "navy")
    people = ["navy"] * 2 + ["blue"] * 8
    rows = rows_of([turn(answers=people)], [turn(assistant="red")])
    if metric == "anls": rows = rows_of([turn(answers=people)], [turn(assistant="navy!")])
    metrics = evaluate(model, processor, rows, rows, metric=metric)
    assert metrics[metric] == pytest.approx(wanted) and metrics["metric"] == metric
    assert {f"blind_{metric}", f"other_image_{metric}", "majority", "question_only"} <= {*metrics}
    assert report(metrics).startswith(name)

def test_an_unknown_metric_is_refused(model, processor):
    with pytest.raises(ValueError, match="'bleu'.*exact_match, vqa"):
        predict(model, processor, rows_of([turn()]), metric="bleu")

# Intervals

def test_every_question_twice_is_no_news():
    right = [float(n % 3 > 0) for n in range(60)]
    once, twice = score(right, range(60)), score(right * 2, [*range(60)] * 2)
    assert once == score(right) and twice["images"] == 60
    assert twice["interval"] == pytest.approx(once["interval"])
    assert score([True] * 40, [n // 10 for n in range(40)])["interval"] == wilson(4, 4)
    assert clustered_error([1, 0], [0, 1]) == pytest.approx(math.sqrt(0.25 / 2))

@pytest.mark.parametrize("images, questions", [(40, 10), (60, 3), (80, 1)])
def test_intervals_hold_what_they_promise(images, questions):
    "Images differ in difficulty. 95 of 100 intervals should hold the true accuracy; 65 of Wilson's do."
    dice = random.Random(0)
    runs, held, plain = 400, 0, 0
    for _ in range(runs):
        skills = [dice.betavariate(1.4, 0.6) for _ in range(images)]
        right = [float(dice.random() < skill) for skill in skills for _ in range(questions)]
        low, high = score(right, [n for n in range(images) for _ in range(questions)])["interval"]
        held += low <= 0.7 <= high
        low, high = wilson(sum(right), len(right))
        plain += low <= 0.7 <= high
    assert 0.92 <= held / runs <= 0.98
    assert plain / runs < 0.75 or questions < 10

def test_questions_about_an_image_in_several_rows_are_one_cluster(model, processor, monkeypatch):
    Parrot(monkeypatch, processor, "blue")
    rows = [dict(images=[picture(n // 5)],
        texts=[turn(f"is it {n}?", "blue" if n < 10 else "red")]) for n in range(20)]
    metrics = evaluate(model, processor, rows)
    assert metrics["images"] == 4 and metrics["interval"] == pytest.approx(wilson(2, 4))
    assert "20 questions about 4 images" in report(metrics)

def test_another_image_is_another_image(model, processor):
    "Rows with the same picture do not trade; a row without a partner gets grey."
    rows = [dict(images=[picture(n % 2)],
        texts=[turn()]) for n in range(6)] + [dict(images=[picture(1)] * 2, texts=[turn()])]
    pictures = evaluation.Pictures(rows, processor)
    for n in range(7): pictures.look(n)
    for n in range(6):
        own, other = pictures.show(n), pictures.show(n, "other")
        assert other.any() and not own.equal(other)
    assert not pictures.show(6, "other").any() and len(pictures.show(6, "other")) == 2

def test_choices_show_another_image(model, processor, monkeypatch):
    Parrot(monkeypatch, processor, "C")
    choices = [read_choice(row_of(image=picture(n))) for n in range(3)]
    metrics = evaluate_choices(model, processor, choices)
    assert metrics["accuracy"] == metrics["other_image_accuracy"] == metrics["blind_accuracy"] == 1
    assert "another image" in report(metrics)

# Rows that cannot be used

BAD = {
    "question is missing": turn(user=None), "question is empty": turn(user="  "),
    "answer is missing": turn(assistant=None),
    "answer is empty": turn(assistant=""),
    "answer is missing ": turn(assistant=None, answers=[None, ""]),
    "half a letter": turn(user="is it \ud83d?"),
    "less than 16 tokens": turn(user="blue " * 3000), "less than": turn(user="is it blue? " * 12)}

@pytest.mark.parametrize("reason", BAD)
def test_a_bad_question_is_left_out_and_counted(model, processor, monkeypatch, reason):
    Parrot(monkeypatch, processor, "blue")
    if reason == "less than": # it fits, but leaves no room
        length = len(processor.prompt(BAD[reason]["user"], processor.pixels([picture()])[1]))
        processor.max_length = length + 15
    metrics = evaluate(model, processor, rows_of([turn()], [BAD[reason], turn()], [turn()]))
    assert metrics["count"] == 3 and metrics["exact_match"] == 1
    (why, count), = metrics["unusable"].items()
    assert reason in why and "row 1" in why and count == 1
    assert f"left out: 1 × {why}" in report(metrics) and json.dumps(metrics)

BROKEN = dict(bytes=picture()["bytes"][:300], path=None)

@pytest.mark.parametrize("row, reason", [
    (dict(images=[BROKEN], texts=[turn(), turn()]), "image cannot be read"),
    (dict(images=[None], texts=[turn()]), "image cannot be read"),
    (dict(images=[dict(bytes=b"", path=None)], texts=[turn()]), "image cannot be read"),
    (dict(images=["nowhere.png"], texts=[turn()]), "image cannot be read"),
    (dict(images=[picture(9)], texts=None), "no questions"),
    (dict(images=[picture(9)], texts=[]), "no questions"),
    (dict(images=[picture(9)], texts=[None]), "question is missing")])
def test_a_bad_row_is_left_out_and_counted(model, processor, monkeypatch, row, reason):
    Parrot(monkeypatch, processor, "blue")
    rows = rows_of([turn()], [turn()], [turn()])
    metrics = evaluate(model, processor, [rows[0], row, *rows[1:]], rows)
    (why, count), = metrics["unusable"].items()
    assert metrics["count"] == 3 and count == 1 and reason in why
    assert [p["row"] for p in metrics["predictions"]] == [0, 2, 3]

ODD = [None, 5, "texts", ["texts"], {}, dict(texts="texts"), dict(texts={}),
       dict(texts=["turn"]), dict(texts=[5])]

@pytest.mark.parametrize("row", ODD, ids=map(str, ODD))
def test_what_is_no_row_is_left_out_and_counted(model, processor, monkeypatch, row):
    Parrot(monkeypatch, processor, "blue")
    metrics = evaluate(model, processor, [*rows_of([turn()], [turn()]), row])
    (why, count), = metrics["unusable"].items()
    assert metrics["count"] == 2 and count == 1 and "row 2" in why

@pytest.mark.parametrize("change", [
    lambda row: row | dict(images=row["images"][0]), lambda row: row | dict(images=(*row["images"],)),
    lambda row: row | dict(texts=[turn(source=["a", "b"])]), lambda row: row | dict(texts=(turn(),)),
    lambda row: row | dict(texts=[turn(assistant=None, answers="blue")])])
def test_other_forms_of_a_row_are_read(model, processor, monkeypatch, change):
    Parrot(monkeypatch, processor, "blue")
    first, second = rows_of([turn()], [turn()])
    metrics = evaluate(model, processor, [change(first), second])
    assert metrics["count"] == 2 and metrics["exact_match"] == 1 and metrics["unusable"] == {}

def test_why_an_image_cannot_be_read_is_told(model, processor, monkeypatch):
    Parrot(monkeypatch, processor, "blue")
    bad = [dict(images=[name], texts=[turn()]) for name in ("a.png", "b.png")]
    (why, count), = evaluate(model, processor, rows_of([turn()]) + bad)["unusable"].items()
    assert "it is not there" in why and count == 2 and "\n" not in why

@pytest.mark.parametrize("change, reason", [
    (dict(answer=5), "none of the options"), (dict(answer="C"), "answer is missing"),
    (dict(question=None), "question is missing"), (dict(options="abc"), "options is missing")])
def test_odd_choices_are_left_out(model, processor, monkeypatch, change, reason):
    Parrot(monkeypatch, processor, "C")
    good = [read_choice(row_of(image=picture(n))) for n in range(2)]
    metrics = evaluate_choices(model, processor, [*good, good[0] | change])
    (why, count), = metrics["unusable"].items()
    assert metrics["count"] == 2 and reason in why and count == 1

def test_a_question_without_a_source_is_asked(model, processor, monkeypatch):
    Parrot(monkeypatch, processor, "blue")
    metrics = evaluate(model, processor, rows_of([turn(source=None)], [turn()]))
    assert {*metrics["by_type"]} == {"unnamed", "color"} and metrics["unusable"] == {} and report(metrics)

@pytest.mark.parametrize("given, message", [
    ([], "no rows to evaluate"), (rows_of([turn(user=None)]), "none of the 1 rows .* question is missing")])
def test_nothing_to_evaluate_is_told_in_one_line(model, processor, given, message):
    for call in (predict, evaluate):
        with pytest.raises(ValueError, match=message) as error: call(model, processor, given)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no rows to evaluate"): evaluate_choices(model, processor, [])

def test_bad_choices_are_left_out(model, processor, monkeypatch, tmp_path):
    Parrot(monkeypatch, processor, "C")
    rows = [row_of(image=picture(n), answer="C") for n in range(6)]
    rows[1]["answer"] = "Z"
    rows[2]["question"] = None
    rows[3]["image"] = BROKEN
    metrics = evaluate_choices(model, processor, load_choices(benchmark(tmp_path, rows)))
    assert metrics["count"] == 3 and metrics["accuracy"] == 1 and sum(metrics["unusable"].values()) == 3
    assert "row 3" in report(metrics)
    for row in rows: row["answer"] = "Z"
    with pytest.raises(ValueError, match="none of the 6 rows"):
        evaluate_choices(model, processor, Lazy(6, lambda n: read_choice(rows[n])))

def test_baselines_leave_out_the_same(model):
    rows = [dict(texts=[turn(), turn(user=None), turn(assistant=None)])]
    assert text_baselines(rows, rows) == dict(majority=1, question_only=1)

# Memory and order

def test_batches_are_those_that_fit(model, processor, monkeypatch):
    parrot = Parrot(monkeypatch, processor, "blue")
    rows = rows_of([turn()] * 3, [turn()] * 3, [turn()])
    predict(model, processor, rows, batch_size=4)
    assert parrot.batches == [(4, 4), (3, 3)]
    monkeypatch.setattr(evaluation, "SQUARES_BYTES", 2 * processor.pixels([picture()])[0].nbytes)
    parrot.batches.clear()
    predict(model, processor, rows)
    assert parrot.batches == [(2, 2)] * 3 + [(1, 1)]

def test_few_images_are_open_at_a_time(model, processor, monkeypatch):
    Parrot(monkeypatch, processor, "blue")
    pixels, opened, alive = type(processor).pixels, [], []
    def counted(self, images):
        found, grids = pixels(self, images)
        opened.append(weakref.ref(found))
        alive.append(sum(ref() is not None for ref in opened))
        return found, grids
    monkeypatch.setattr(type(processor), "pixels", counted)
    predict(model, processor, rows_of(*[[turn()]] * 40), "other", batch_size=4)
    assert len(opened) >= 40 and max(alive) <= 4 + 2 # of a batch, and the last two

@pytest.mark.parametrize("size", [0, -1, "2", None, 1.5])
def test_a_batch_of_nothing_is_refused(model, processor, size):
    with pytest.raises(ValueError, match="at least 1"):
        predict(model, processor, rows_of([turn()]), batch_size=size)
