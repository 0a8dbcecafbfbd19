"""What is sent and what is drawn."""

import unittest
from xml.etree import ElementTree

from bench import plots, workloads
from bench.plots import Bar
from bench.workloads import MINILM, TINY


class Requests(unittest.TestCase):
    def test_numbers_of_protocol_buffers_have_seven_bits_a_byte(self):
        self.assertEqual([workloads.varint(n) for n in (1, 127, 128, 300)], [b"\1", b"\x7f", b"\x80\1", b"\xac\2"])

    def test_a_grpc_request_is_one_frame_with_the_raw_tensor_last(self):
        body = TINY.grpc("tiny").body
        self.assertEqual(body[0], 0, "not compressed")
        self.assertEqual(int.from_bytes(body[1:5], "big"), len(body) - 5)
        self.assertTrue(body[5:].startswith(b"\x0a\x04tiny"))
        self.assertTrue(body.endswith(b"\x3a\x10" + TINY.inputs[0].raw))

    def test_a_binary_request_tells_how_long_its_head_is(self):
        request = MINILM.binary("minilm")
        head = int(request.headers["inference-header-content-length"])
        self.assertEqual(request.body[head:], b"".join(tensor.raw for tensor in MINILM.inputs))
        self.assertTrue(request.body[:head].endswith(b"}"))


class Plots(unittest.TestCase):
    def test_plots_are_well_formed_whatever_their_labels_say(self):
        ElementTree.fromstring(plots.bars("a < b", [Bar("MiniLM & more", 0.9, 0.8, 1.0, 0.95)]))
        series = {"p99": [(0.5, 10.0), (1.0, float("nan"))]}
        ElementTree.fromstring(plots.lines("latency", "load", "ms", series, log=True))

    def test_an_axis_has_a_handful_of_round_steps(self):
        self.assertEqual(plots.steps(1.1), [0, 0.2, 0.4, 0.6, 0.8, 1.0])
        self.assertEqual(plots.steps(200), [0, 50, 100, 150, 200])
        self.assertEqual(plots.decades(15, 300), [20, 50, 100, 200])


if __name__ == "__main__":
    unittest.main()
