"""The real server, driven by the openai package and by clients that mean no good. Usage: serve_test.py BINARY.

Ends with status 77, which ctest counts as skipped, where a package is missing."""
import concurrent.futures
import json
import os
import pathlib
import random
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

try:
    import numpy
    import openai
    import tokenizers
    from safetensors.numpy import save_file
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

BINARY = sys.argv[1]
FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="seqloom-serve-"))
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message.role + '>' + message.content + '\\n' }}{% endfor %}"
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('the user begins') }}{% endif %}{{ '<assistant>' }}"
)
RECIPE = """[task]
kind = "language"
data = "{data}"
tokenizer = "{tokenizer}"
context = 32
eval_tokens = 256
[model]
width = 16
layers = [{layers}]
[train]
steps = 6
batch = 2
"""


MAMBA = '{ mixer = { kind = "mamba", state = 4 } }'
HYBRID = MAMBA + ', { mixer = { kind = "attention", heads = 2, window = 8, position = "rope" }, channel = { kind = "swiglu" } }'


def train(name, layers=HYBRID, tokenizer="bytes"):
    data = FOLDER / "text.txt"
    data.write_text("the quick brown fox jumps over the lazy dog. " * 300)
    recipe = FOLDER / f"{name}.toml"
    recipe.write_text(RECIPE.format(data=data, layers=layers, tokenizer=tokenizer))
    subprocess.run([BINARY, "train", recipe, "--out", FOLDER / name], check=True, capture_output=True)


def save_tokenizer(path):
    """The alphabet of bytes, and a token that begins a text."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer.save(str(path))


def make_encoder():
    """A BERT of random numbers, imported."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] + "the cat sat on a mat dog and fox".split()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    saved = FOLDER / "bert"
    saved.mkdir()
    tokenizer.save(str(saved / "tokenizer.json"))
    width, hidden, longest, layers = 16, 32, 64, 2
    (saved / "config.json").write_text(json.dumps({
        "model_type": "bert", "vocab_size": len(words), "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2,
        "intermediate_size": hidden, "max_position_embeddings": longest, "type_vocab_size": 2}))
    shapes = {f"embeddings.{name}_embeddings.weight": (rows, width) for name, rows in
              (("word", len(words)), ("position", longest), ("token_type", 2))}
    dense = {"pooler.dense": (width, width)}
    norms = ["embeddings.LayerNorm"]
    for i in range(layers):
        at = f"encoder.layer.{i}."
        dense |= {at + f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        dense |= {at + "attention.output.dense": (width, width), at + "intermediate.dense": (hidden, width),
                  at + "output.dense": (width, hidden)}
        norms += [at + "attention.output.LayerNorm", at + "output.LayerNorm"]
    for name, shape in dense.items():
        shapes |= {name + ".weight": shape, name + ".bias": shape[:1]}
    for name in norms:
        shapes |= {name + ".weight": (width,), name + ".bias": (width,)}
    draw = numpy.random.default_rng(0)
    save_file({name: draw.standard_normal(shape).astype("float32") for name, shape in shapes.items()},
              saved / "model.safetensors", {"format": "pt"})
    subprocess.run([BINARY, "import", saved, "--out", FOLDER / "encoder"], check=True, capture_output=True)


def attach(source, target, files):
    """A copy of a checkpoint with files attached, as an imported one has them."""
    content = source.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8:8 + size])
    header["__metadata__"] |= {f"attachment.{name}": text for name, text in files.items()}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    target.mkdir()
    (target / "checkpoint.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size:])


class Server:
    def __init__(self, *arguments, run="chat", environment=None):
        self.process = subprocess.Popen(
            [BINARY, "serve", FOLDER / run, "--port", "0", *map(str, arguments)], stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=os.environ | (environment or {}))
        line = self.process.stdout.readline()
        assert "listening on http://127.0.0.1:" in line, line
        self.port = int(line.rsplit(":", 1)[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def client(self, key="none"):
        return openai.OpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0, timeout=60)

    def call(self, path, body=None, method=None, key=None, raw=None, kind="application/json"):
        """Status, headers and the answer: JSON where it is."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method or ("POST" if data is not None else "GET"))
        request.add_header("Content-Type", kind)
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                status, headers, content = reply.status, reply.headers, reply.read()
        except urllib.error.HTTPError as error:
            status, headers, content = error.code, error.headers, error.read()
        try:
            return status, headers, json.loads(content)
        except ValueError:
            return status, headers, content

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def send(self, content):
        """What comes back to raw bytes, up to the end of the connection."""
        with self.connect() as connection:
            try:
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
                reply = b""
                while piece := connection.recv(65536):
                    reply += piece
                return reply
            except OSError:
                return b""

    def metric(self, name):
        for line in self.call("/metrics")[2].decode().splitlines():
            if line.startswith(f"seqloom_{name} "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")

    def wait_for(self, name, value):
        for _ in range(200):
            if self.metric(name) == value:
                return
            time.sleep(0.05)
        raise AssertionError(f"{name} is {self.metric(name)}, not {value}")

    def memory(self):
        """The most that was resident, in MB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) // 1024

    def text(self, **body):
        status, _, answer = self.call("/v1/completions", body)
        assert status == 200, answer
        return answer["choices"][0]["text"]


def post(path, body, more=b""):
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s" % (path.encode(), len(body), more, body)


def text_of(reply):
    """The text of a stream's events, which chunks of HTTP may not cut: each event is written at once."""
    events = [line[6:] for line in reply.decode().splitlines() if line.startswith("data: {")]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


LONG = {"prompt": "the ", "max_tokens": 4096, "temperature": 0, "stream": True}


class OpenAi(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--states", FOLDER / "states_openai")
        cls.client = cls.server.client()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def test_models(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["chat"])

    def test_completion_is_that_of_generate(self):
        answer = self.client.completions.create(model="chat", prompt="the quick", max_tokens=12, temperature=0)
        command = [BINARY, "generate", FOLDER / "chat", "--prompt", "the quick", "--tokens", "12", "--temperature", "0", "--json"]
        expected = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        self.assertEqual(answer.choices[0].text, expected["text"])
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertEqual((answer.usage.prompt_tokens, answer.usage.completion_tokens), (9, 12))

    def test_stream_gives_the_same_text(self):
        arguments = dict(model="chat", prompt="the quick", max_tokens=30, temperature=0.9, seed=7)
        whole = self.client.completions.create(**arguments).choices[0].text
        events = list(self.client.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(event.choices[0].text for event in events if event.choices), whole)
        self.assertEqual(events[-1].usage.completion_tokens, 30)
        self.assertEqual([event.choices[0].finish_reason for event in events if event.choices][-1], "length")

    def test_seeds_choices_echo_and_stops(self):
        create = lambda **more: self.client.completions.create(model="chat", prompt="fox ", max_tokens=30, **more)
        several = create(n=3, seed=5)
        self.assertEqual(len({choice.text for choice in several.choices}), 3)
        self.assertEqual([choice.text for choice in create(n=3, seed=5).choices], [choice.text for choice in several.choices])
        self.assertEqual(several.choices[1].text, create(seed=6).choices[0].text)
        self.assertTrue(create(seed=5, echo=True).choices[0].text.startswith("fox "))
        text = create(temperature=0).choices[0].text
        stop = text[5:7]
        cut = create(temperature=0, stop=[stop, "never occurs"]).choices[0]
        self.assertEqual((cut.text, cut.finish_reason), (text[:text.index(stop)], "stop"))
        two = self.client.completions.create(model="chat", prompt=["a", [98, 99]], max_tokens=2)
        self.assertEqual(len(two.choices), 2)
        self.assertEqual(self.client.completions.create(
            model="chat", prompt="a", max_tokens=2, extra_body={"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1},
        ).usage.completion_tokens, 2)

    def test_chat_renders_the_template(self):
        messages = [{"role": "system", "content": "short"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
        answer = self.client.chat.completions.create(model="chat", messages=messages, max_completion_tokens=8, temperature=0)
        plain = self.server.text(prompt="<system>short\n<user>hi\n<assistant>", max_tokens=8, temperature=0)
        self.assertEqual((answer.choices[0].message.role, answer.choices[0].message.content), ("assistant", plain))
        events = list(self.client.chat.completions.create(model="chat", messages=messages, max_tokens=8, temperature=0, stream=True))
        self.assertEqual(events[0].choices[0].delta.role, "assistant")
        self.assertEqual("".join(event.choices[0].delta.content or "" for event in events), plain)

    def test_end_tokens_end_a_text(self):
        with self.assertRaises(AssertionError):
            self.server.text(prompt="")
        likeliest = self.server.text(prompt="the ", max_tokens=1, temperature=0)
        attach(FOLDER / "plain" / "checkpoint.safetensors", FOLDER / "ends",
               {"generation_config.json": json.dumps({"eos_token_id": [ord(likeliest)]})})
        with Server(run="ends") as server:
            choice = server.call("/v1/completions", {"prompt": "the ", "max_tokens": 9, "temperature": 0})[2]["choices"][0]
            self.assertEqual((choice["text"], choice["finish_reason"]), ("", "stop"))
            status, _, answer = server.call("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})
            self.assertEqual((status, answer["error"]["code"]), (400, "no_chat_template"))
            status, _, answer = server.call("/v1/states", {"prompt": "a"})
            self.assertEqual((status, answer["error"]["code"]), (400, "no_states"))

    def test_errors_have_openais_shape(self):
        with self.assertRaises(openai.BadRequestError) as raised:
            self.client.embeddings.create(model="chat", input="a")
        self.assertEqual(raised.exception.code, "not_an_encoder")
        with self.assertRaises(openai.BadRequestError) as raised:
            self.client.chat.completions.create(model="chat", messages=[{"role": "assistant", "content": "x"}])
        self.assertIn("the user begins", raised.exception.message)
        for body, param in [
            ({}, "prompt"), ({"prompt": 3}, "prompt"), ({"prompt": [1, "a"]}, "prompt"), ({"prompt": [999]}, "prompt"),
            ({"prompt": "a", "temperature": -1}, "temperature"), ({"prompt": "a", "temperature": "hot"}, "temperature"),
            ({"prompt": "a", "max_tokens": -1}, "max_tokens"), ({"prompt": "a", "max_tokens": 10**6}, "max_tokens"),
            ({"prompt": "a", "n": 1000}, "n"), ({"prompt": "a", "presence_penalty": 1}, "presence_penalty"),
            ({"prompt": "a", "frequency_penalty": 0.5}, "frequency_penalty"), ({"prompt": "a", "logprobs": 3}, "logprobs"),
            ({"prompt": "a", "stop": ""}, "stop"), ({"prompt": "a", "stop": ["a"] * 99}, "stop"), ({"prompt": "a", "seed": 1.5}, "seed"),
            ({"prompt": "a", "stream": "yes"}, "stream"), ({"prompt": "a", "top_p": 0}, "top_p"), ({"prompt": "a", "logit_bias": {"1": 5}}, "logit_bias"),
        ]:
            status, _, answer = self.server.call("/v1/completions", body)
            self.assertEqual((status, answer["error"]["type"], answer["error"]["param"]), (400, "invalid_request_error", param), body)
        self.assertEqual(self.server.call("/v1/completions", {"prompt": "a", "state": "state-" + "0" * 32})[0], 404)
        self.assertEqual(self.server.call("/v1/nothing")[0], 404)
        self.assertEqual(self.server.call("/v1/completions")[0], 405)
        self.assertEqual(self.server.call("/v1/completions", raw=b"{")[0], 400)
        self.assertEqual(self.server.call("/v1/completions", raw=b"[" * 10000)[0], 400)

    def test_metrics(self):
        made = self.server.metric("tokens_total")
        self.server.text(prompt="a", max_tokens=5)
        self.assertEqual(self.server.metric("tokens_total"), made + 5)
        text = self.server.call("/metrics")[2].decode()
        self.assertIn('seqloom_requests_total{route="completions",status="200"}', text)
        self.assertIn('seqloom_request_seconds_bucket{le="+Inf"}', text)


    def test_a_text_begins_with_what_the_tokenizer_puts_there(self):
        save_tokenizer(FOLDER / "tokenizer.json")
        train("framed", tokenizer=FOLDER / "tokenizer.json")
        attach(FOLDER / "framed" / "checkpoint.safetensors", FOLDER / "framed_chat", {"chat_template.jinja": "<s>{{ messages[0].content }}"})
        with Server("--states", FOLDER / "states_framed", run="framed_chat") as server:
            ask = lambda path="completions", **body: server.call("/v1/" + path, {"max_tokens": 9, "temperature": 0} | body)[2]
            begun = ask(prompt="the fox", echo=True)
            command = [BINARY, "generate", FOLDER / "framed", "--prompt", "the fox", "--tokens", "9", "--temperature", "0", "--json"]
            expected = "the fox" + json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["text"]
            self.assertEqual((begun["choices"][0]["text"], begun["usage"]["prompt_tokens"]), (expected, 8))
            chat = ask("chat/completions", messages=[{"role": "user", "content": "the fox"}])
            self.assertEqual(chat["usage"]["prompt_tokens"], 8)  # the template's own
            state = ask("states", prompt="the ")
            self.assertEqual(state["tokens"], 5)
            rest = ask(state=state["id"], prompt="fox", echo=True)
            self.assertEqual(("the " + rest["choices"][0]["text"], rest["usage"]["prompt_tokens"]), (expected, 3))


class Embeddings(unittest.TestCase):
    def test_vectors_are_those_of_embed(self):
        texts = ["the cat sat", "", "a fox and the dog on a mat " * 30, "cat"] + [f"the {'cat ' * i}" for i in range(50)]
        (FOLDER / "texts").write_text("\n".join(texts) + "\n")
        lines = subprocess.run([BINARY, "embed", FOLDER / "encoder", FOLDER / "texts"], capture_output=True, check=True).stdout
        expected = numpy.array([json.loads(line) for line in lines.splitlines()])
        with Server("--max-prompt", 5000, run="encoder") as server:
            client = server.client()
            for more in ({}, {"encoding_format": "float"}):  # without: base64, and the package decodes it
                answer = client.embeddings.create(model="encoder", input=texts, **more)
                self.assertEqual([item.index for item in answer.data], list(range(len(texts))))
                numpy.testing.assert_allclose([item.embedding for item in answer.data], expected, atol=1e-5)
            one = client.embeddings.create(model="encoder", input="the cat sat")
            numpy.testing.assert_allclose(one.data[0].embedding, expected[0], atol=1e-5)
            self.assertEqual((one.usage.prompt_tokens, one.model), (5, "encoder"))

            def ask(seed):
                chosen = random.Random(seed).choices(range(len(texts)), k=40)
                answer = server.call("/v1/embeddings", {"input": [texts[i] for i in chosen]})[2]
                numpy.testing.assert_allclose([item["embedding"] for item in answer["data"]], expected[chosen], atol=1e-5)

            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                list(pool.map(ask, range(100)))
            for body, param in [({}, "input"), ({"input": []}, "input"), ({"input": [[1]]}, "input"), ({"input": ["a"] * 2049}, "input"),
                                ({"input": "a", "dimensions": 4}, "dimensions"), ({"input": ["cat " * 60] * 100}, "input")]:
                status, _, error = server.call("/v1/embeddings", body)
                self.assertEqual((status, error["error"]["param"]), (400, param))
            for path, body in (("completions", {"prompt": "a"}), ("states", {"prompt": "a"}), ("states", None)):
                status, _, error = server.call("/v1/" + path, body)
                self.assertEqual((status, error["error"]["code"]), (400, "not_a_decoder"))
            self.assertEqual(server.call("/v1/models")[2]["data"][0]["id"], "encoder")
            self.assertGreater(server.metric("prompt_tokens_total"), 5000)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(timeout=10), 0)


class States(unittest.TestCase):
    def test_states_are_things_of_their_own(self):
        with Server("--states", FOLDER / "states", "--max-states", 4) as server:
            whole = server.text(prompt="the quick brown", max_tokens=20, temperature=0.8, seed=3)
            state = server.call("/v1/states", {"prompt": "the quick brown"})[2]
            self.assertEqual(state["tokens"], 15)
            go_on = lambda server, state, **more: server.text(state=state, max_tokens=20, temperature=0.8, seed=3, **more)
            self.assertEqual(go_on(server, state["id"]), whole)
            fork = server.call(f"/v1/states/{state['id']}/fork", {})[2]
            first = server.call("/v1/completions", {"prompt": "the quick brown", "max_tokens": 8, "temperature": 0.8, "seed": 3, "keep_state": True})[2]
            kept = first["choices"][0]["state_id"]
            rest = server.text(state=kept, max_tokens=12, temperature=0.8, seed=3)
            self.assertEqual(first["choices"][0]["text"] + rest, whole)
            self.assertEqual(server.call("/v1/states", {"state": kept, "prompt": "!"})[2]["tokens"], 24)
            status, _, error = server.call("/v1/states", {"prompt": "x"})
            self.assertEqual((status, error["error"]["code"]), (409, "states_full"))
            self.assertEqual(len(server.call("/v1/states")[2]["data"]), 4)
            content = server.call(f"/v1/states/{fork['id']}/file")[2]
            self.assertEqual(server.call(f"/v1/states/{fork['id']}", method="DELETE")[2]["deleted"], True)
            self.assertEqual(server.call(f"/v1/states/{fork['id']}")[0], 404)
            uploaded = server.call("/v1/states", raw=content, kind="application/octet-stream")[2]
            self.assertEqual(go_on(server, uploaded["id"]), whole)
            server.call(f"/v1/states/{uploaded['id']}", method="DELETE")
            for broken in (b"", b"x" * 100, content[:-5], content.replace(b"model", b"modem")):
                self.assertEqual(server.call("/v1/states", raw=broken or b"{", kind="application/octet-stream")[0], 400)
            for path in ("/v1/states/..%2f..%2fchat", "/v1/states/../x", "/v1/states/state-zz", "/v1/states/" + "a" * 5000):
                self.assertIn(server.call(path)[0], (404, 414), path)
            self.assertEqual(len(server.call("/v1/states")[2]["data"]), 3)
            running = server.connect()  # killed in the middle of an answer
            running.sendall(post("/v1/completions", json.dumps(LONG).encode()))
            running.recv(100)
            server.process.kill()
            running.close()
        (FOLDER / "states" / "state-00000000000000000000000000000000.safetensors").write_bytes(b"half")
        with Server("--states", FOLDER / "states") as server:
            self.assertEqual(len(server.call("/v1/states")[2]["data"]), 3)
            self.assertEqual(go_on(server, state["id"]), whole)
            self.assertEqual(server.text(state=kept, max_tokens=12, temperature=0.8, seed=3), rest)


class Safety(unittest.TestCase):
    def test_keys(self):
        (FOLDER / "key").write_text("secret-key\n")
        for arguments, environment in ((["--api-key-file", FOLDER / "key"], {}), ([], {"SEQLOOM_API_KEY": "secret-key"})):
            with Server(*arguments, environment=environment) as server:
                self.assertEqual(server.client("secret-key").completions.create(model="m", prompt="a", max_tokens=1).usage.completion_tokens, 1)
                for key in (None, "secret-ke", "secret-keyy", "secret-kez", ""):
                    self.assertEqual(server.call("/v1/models", key=key)[0], 401, key)
                with self.assertRaises(openai.AuthenticationError):
                    server.client("wrong").models.list()
                self.assertEqual(server.call("/health")[0], 200)
                self.assertIn(b" 401 ", server.send(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 1000))

    def test_a_full_queue_says_so_and_recovers(self):
        with Server("--max-streams", 1, "--max-queue", 1, "--max-tokens", 10**9) as server:
            streams = [server.connect() for _ in range(2)]
            for stream in streams:
                stream.sendall(post("/v1/completions", json.dumps(LONG | {"max_tokens": 10**9}).encode()))
            server.wait_for("streams_running", 1)
            server.wait_for("streams_waiting", 1)
            status, headers, error = server.call("/v1/completions", {"prompt": "a"})
            self.assertEqual((status, error["error"]["code"], headers["Retry-After"]), (429, "queue_full", "1"))
            for stream in streams:
                stream.close()  # both are cancelled, or this would take a day
            server.wait_for("streams_running", 0)
            server.wait_for("streams_waiting", 0)
            self.assertEqual(len(server.text(prompt="a", max_tokens=3, temperature=0)), 3)
            self.assertEqual(server.metric("streams_cancelled_total"), 2)

    def test_a_client_that_leaves_cancels(self):
        with Server("--max-tokens", 10**9) as server:
            for streams in (True, False):
                cancelled = server.metric("streams_cancelled_total")
                with server.connect() as connection:
                    connection.sendall(post("/v1/completions", json.dumps(LONG | {"max_tokens": 10**9, "stream": streams}).encode()))
                    server.wait_for("streams_running", 1)
                server.wait_for("streams_cancelled_total", cancelled + 1)

    def test_answers_end_in_time(self):
        with Server("--max-tokens", 10**9, "--request-seconds", 1) as server:
            status, _, error = server.call("/v1/completions", {"prompt": "a", "max_tokens": 10**9})
            self.assertEqual((status, error["error"]["code"]), (503, "timeout"))
            begin = time.monotonic()
            with self.assertRaisesRegex(openai.APIError, "longer than this server allows"):
                for _ in server.client().completions.create(model="m", prompt="a", max_tokens=10**9, stream=True):
                    pass
            self.assertLess(time.monotonic() - begin, 10)
            server.wait_for("streams_running", 0)

    def test_sigterm_finishes_what_runs(self):
        with Server("--max-tokens", 10**6) as server:
            whole = server.text(prompt="the ", max_tokens=10_000, temperature=0)
            running = server.client().completions.create(model="m", prompt="the ", max_tokens=10_000, temperature=0, stream=True)
            text = next(running).choices[0].text
            server.process.send_signal(signal.SIGTERM)
            while server.call("/health")[0] == 200:
                time.sleep(0.01)
            status, headers, error = server.call("/v1/completions", {"prompt": "a"})
            self.assertEqual((status, error["error"]["code"], headers["Retry-After"]), (503, "stopping", "1"))
            text += "".join(event.choices[0].text for event in running)
            self.assertEqual(text, whole)
            self.assertEqual(server.process.wait(timeout=30), 0)
        with Server("--max-tokens", 10**9) as server:
            with server.connect() as connection:
                connection.sendall(post("/v1/completions", json.dumps(LONG | {"max_tokens": 10**9}).encode()))
                server.wait_for("streams_running", 1)
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.3)
                self.assertIsNone(server.process.poll())
                server.process.send_signal(signal.SIGTERM)
                self.assertEqual(server.process.wait(timeout=10), 128 + signal.SIGTERM)

    def test_large_slow_and_broken_requests(self):
        with Server("--head-seconds", 1, "--body-seconds", 1, "--idle-seconds", 1) as server:
            before = server.text(prompt="the ", max_tokens=10, temperature=0)
            reply = server.send(post("/v1/completions", b'{"prompt": "' + b"x" * 100_000_000 + b'"}'))
            self.assertTrue(reply == b"" or b" 413 " in reply, reply[:200])
            chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
            reply = server.send(b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 100)
            self.assertTrue(reply == b"" or b" 413 " in reply, reply[:200])
            for broken in (b"GET / HTTP/1.1\r\nA: " + b"x" * 1_000_000, b"x" * 1_000_000, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
                           b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100_000 + b"\r\n", b"NONSENSE\r\n\r\n", b"\r\n\r\n", b"\0" * 100 + b"\r\n\r\n",
                           post("/v1/completions", b"{}", b"Content-Length: 7\r\n"), post("/v1/completions", b"{}", b"Transfer-Encoding: chunked\r\n"),
                           post("/v1/completions", b"{}", b"Content-Encoding: gzip\r\n"), post("/v1/completions", b"{}", b"Content-Type: multipart/form-data; boundary=x\r\n"),
                           b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                           b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc", b"PRI * HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
                           b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 100_000,
                           b"GET /v1/models HTTP/1.1\r\nRange: bytes=" + b"0-1," * 3000 + b"\r\n\r\n",
                           b"GET /v1/models HTTP/1.1\r\nA: b\nRange: bytes=" + b"0-1," * 3000 + b"\r\n\r\n"):
                reply = server.send(broken)
                self.assertNotIn(b" 200 OK", reply.replace(b"200 OK", b"") if b"Range" in broken else reply, broken[:60])
            for half in (b"GET /heal", post("/v1/completions", b"x" * 100)[:-50]):  # and then nothing
                with server.connect() as connection:
                    connection.sendall(half)
                    begin = time.monotonic()
                    reply = connection.recv(1000)
                    self.assertIn(b" 408 ", reply)
                    self.assertLess(time.monotonic() - begin, 5)
            with server.connect() as connection:  # a byte now and then buys no time
                connection.sendall(post("/v1/completions", b"x" * 1000)[:-990])
                begin = time.monotonic()
                connection.settimeout(0.1)
                while time.monotonic() - begin < 10:
                    try:
                        connection.sendall(b"x")
                        if connection.recv(1000):
                            break
                    except TimeoutError:
                        continue
                    except OSError:
                        break
                self.assertLess(time.monotonic() - begin, 5)
            self.assertEqual(server.text(prompt="the ", max_tokens=10, temperature=0), before)

    def test_a_line_of_a_body_has_a_bound(self):
        with Server() as server:
            with server.connect() as connection:  # a chunk's size without an end
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 100_000)
                begin = time.monotonic()
                self.assertIn(b" 400 ", connection.recv(1000))
                self.assertLess(time.monotonic() - begin, 10)

    def test_a_port_is_one_servers(self):
        with Server() as server:
            second = subprocess.run([BINARY, "serve", FOLDER / "chat", "--port", str(server.port)], capture_output=True, text=True, timeout=60)
            self.assertEqual(second.returncode, 1)
            self.assertIn("cannot listen", second.stderr)

    def test_states_that_cannot_be_written_are_errors(self):
        folder = FOLDER / "states_lost"
        with Server("--states", folder) as server:
            folder.rmdir()
            body = {"prompt": "a", "max_tokens": 2, "keep_state": True}
            self.assertEqual(server.call("/v1/completions", body)[0], 500)
            self.assertIn(b'"server_error"', server.call("/v1/completions", body | {"stream": True})[2])
            self.assertEqual(server.call("/v1/states")[2]["data"], [])

    def test_garbage_does_no_harm(self):
        draw = random.Random(1)
        with Server("--states", FOLDER / "states_fuzz") as server:
            good = [post("/v1/completions", json.dumps({"prompt": "ab", "max_tokens": 2, "stop": ["x"], "n": 2, "stream": True}).encode()),
                    post("/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}).encode()),
                    b"GET /v1/states/state-00 HTTP/1.1\r\nHost: x\r\n\r\n"]

            def attack(seed):
                request = bytearray(draw.choice(good))
                for _ in range(draw.randint(1, 20)):
                    at = draw.randrange(len(request))
                    action = draw.randrange(3)
                    if action == 0:
                        request[at] = draw.randrange(256)
                    elif action == 1:
                        del request[at:at + draw.randint(1, 9)]
                    else:
                        request[at:at] = draw.choice([b"\r\n", b"\0", b"{", b"[", b'"', b"9" * 30, b"%", b"\xff", b"-1", b"e9"])
                    if not request:
                        return b""
                return server.send(bytes(request))

            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                replies = list(pool.map(attack, range(500)))
            self.assertTrue(any(b" 400 " in reply for reply in replies))
            self.assertIsNone(server.process.poll())
            self.assertEqual(server.call("/health")[0], 200)
            server.wait_for("streams_running", 0)

    def test_a_thousand_connections(self):
        with Server("--max-tokens", 10**6, "--max-connections", 1050) as server:
            whole = server.text(prompt="the ", max_tokens=2000, temperature=0)
            running = server.client().completions.create(model="m", prompt="the ", max_tokens=2000, temperature=0, stream=True)
            text = next(running).choices[0].text
            open_ones = []
            for i in range(1000):
                connection = server.connect()
                connection.sendall([b"", b"GET /health HTT", post("/v1/completions", b"x" * 50)[:-9]][i % 3])
                open_ones.append(connection)
            text += "".join(event.choices[0].text for event in running)
            self.assertEqual(text, whole)
            self.assertEqual(server.call("/health")[0], 200)
            more = [server.connect() for _ in range(200)]  # beyond the bound
            for connection in more:
                connection.settimeout(5)
            self.assertTrue(any(b" 503 " in connection.recv(1000) for connection in more[-10:]))
            for connection in open_ones + more:
                connection.close()
            for _ in range(100):
                try:
                    if server.call("/health")[0] == 200:
                        break
                except OSError:
                    pass
                time.sleep(0.1)
            self.assertEqual(server.text(prompt="the ", max_tokens=2000, temperature=0), whole)

    def test_a_thousand_streams_are_each_what_they_are_alone(self):
        count, tokens = 1000, 64
        bodies = [{"prompt": f"{i} fox", "max_tokens": tokens, "temperature": 0.7, "seed": i, "stream": True} for i in range(count)]
        with Server("--max-streams", count, "--max-connections", count + 50, run="mamba") as server:
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                alone = list(pool.map(lambda body: server.text(**body | {"stream": False}), bodies))
            before = server.memory()
            begin = time.monotonic()
            connections = [server.connect() for _ in bodies]
            for connection, body in zip(connections, bodies):
                connection.sendall(post("/v1/completions", json.dumps(body).encode(), b"Connection: close\r\n"))
            replies, most = [b""] * count, 0
            with selectors.DefaultSelector() as selector:
                for i, connection in enumerate(connections):
                    selector.register(connection, selectors.EVENT_READ, i)
                looked = 0
                while selector.get_map():
                    for key, _ in selector.select():
                        piece = key.fileobj.recv(1 << 16)
                        replies[key.data] += piece
                        if not piece:
                            selector.unregister(key.fileobj)
                            key.fileobj.close()
                    if time.monotonic() - looked > 0.5:
                        looked = time.monotonic()
                        most = max(most, server.metric("streams_running"))
            seconds, used = time.monotonic() - begin, server.memory() - before
            self.assertEqual([text_of(reply) for reply in replies], alone)
            print(f"{count} streams of {tokens} tokens, {most:.0f} at once: {seconds:.1f} s, {used} MB more")
            self.assertGreater(most, count // 2)
            self.assertLess(used, 200)


if __name__ == "__main__":
    train("plain")
    train("mamba", MAMBA)
    make_encoder()
    config = {"chat_template": TEMPLATE, "bos_token": {"content": "<s>"}, "unk_token": None}
    attach(FOLDER / "plain" / "checkpoint.safetensors", FOLDER / "chat", {"tokenizer_config.json": json.dumps(config)})
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]], verbosity=2)
