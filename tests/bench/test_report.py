"""The report's arithmetic: `python3 -m unittest discover -s tests/bench -t tests`."""

import json
import unittest

from bench import load, report
from bench.context import Counts
from bench.report import Goal, Row, at_least, at_most
from bench.suites import Claim, in_turns
from bench.usage import Look, Use, between

GOAL = at_least(0.95)


def row(*values: float, goal: Goal = GOAL, **more) -> Row:
    return Row("throughput", "MiniLM", goal, values, **more)


class Verdicts(unittest.TestCase):
    def test_a_goal_is_met_or_missed_where_the_whole_interval_is(self):
        self.assertEqual(row(0.95, 0.96, 0.97).verdict, "met")
        self.assertEqual(row(0.5, 0.96, 0.97).verdict, "undecided")
        self.assertEqual(row(0.5, 0.93, 0.94).verdict, "missed")

    def test_the_interval_holds_the_median_in_95_of_100_cases(self):
        self.assertEqual(report.interval([3.0]), (3.0, 3.0))
        self.assertEqual(report.interval([5.0, 1.0, 3.0, 2.0, 4.0]), (1.0, 5.0), "the whole range of fewer than six")
        self.assertEqual(report.interval(list(range(1, 9))), (1, 8))
        self.assertEqual(report.interval(list(range(1, 10))), (2, 8))
        self.assertEqual(report.interval(list(range(1, 13))), (3, 10))

    def test_a_tail_is_not_measured_where_the_generator_is_later_than_half_of_what_is_allowed(self):
        claim = Claim("overload", "refusals, p99", at_most(5), "ms")
        self.assertEqual(claim.tail(2.5, 5, 3.0).verdict, "met")
        late = claim.tail(2.6, 5, 5.1)
        self.assertEqual(late.verdict, "not measured")
        self.assertIn("2.60 ms late (p99), over half of the 5 ms that are allowed; found 5.10 ms", late.missing)
        self.assertEqual(claim.tail(2.6, 5, 3.0).verdict, "met", "lateness makes it only longer")

    def test_pairs_are_measured_in_the_order_one_other_other_one(self):
        order = []
        in_turns(3, lambda: order.append("bare"), lambda: order.append("server"))
        self.assertEqual(order, ["bare", "server", "server", "bare", "bare", "server"])

    def test_a_value_on_the_limit_is_met_either_way(self):
        self.assertEqual(row(0.95).verdict, "met")
        self.assertEqual(row(150.0, goal=at_most(150)).verdict, "met")

    def test_without_a_limit_a_row_is_only_reported(self):
        self.assertEqual(row(3.0, goal=Goal("lower")).verdict, "reported")

    def test_what_is_missing_is_not_measured_whatever_its_values(self):
        self.assertEqual(row(0.99, missing="not served").verdict, "not measured")
        self.assertEqual(row().verdict, "not measured")


class Markdown(unittest.TestCase):
    def test_a_row_shows_goal_median_range_verdict_and_figures(self):
        table = report.markdown_table([row(0.94, 0.96, 0.97, figures={"bare": [341.26, 0.5]})])
        self.assertIn("| MiniLM | ≥ 0.95 | 0.960 (0.940..0.970) | undecided | bare 341 0.500 |", table)

    def test_a_reason_stands_where_figures_would(self):
        self.assertIn("| - | not measured | not served |", report.markdown_table([row(missing="not served")]))

    def test_numbers_have_three_or_four_digits(self):
        self.assertEqual([report.number(n) for n in (0.9531, 6.789, 28.41, 34061.2, 0.0, float("nan"))],
                         ["0.953", "6.79", "28.4", "34,061", "0", "-"])  # fmt: skip


class Comparison(unittest.TestCase):
    def against(self, before: Row, after: Row, here: str = "one") -> list[str]:
        earlier = json.loads(report.as_json({"processor": "one"}, [before], {}))
        return [loss.name for loss in report.losses(earlier, {"processor": here}, [after])]

    def test_a_loss_over_five_percent_is_found_in_either_direction(self):
        self.assertEqual(self.against(row(1.0), row(0.94, compared=True)), ["MiniLM"])
        slow = row(106.0, goal=at_most(150), compared=True)
        self.assertEqual(self.against(row(100.0), slow), ["MiniLM"])

    def test_smaller_losses_gains_and_rows_that_do_not_count_are_no_loss(self):
        self.assertEqual(self.against(row(1.0), row(0.96, compared=True)), [])
        self.assertEqual(self.against(row(1.0), row(1.5, compared=True)), [])

    def test_a_loss_within_the_spread_of_either_run_is_none(self):
        self.assertEqual(self.against(row(1.0), row(0.8, 0.9, 1.0, compared=True)), [])
        self.assertEqual(self.against(row(0.9, 1.0, 1.1), row(0.91, compared=True)), [])
        self.assertEqual(self.against(row(0.9, 1.0, 1.1), row(0.89, compared=True)), ["MiniLM"])

    def test_a_row_that_is_no_longer_measured_is_a_loss(self):
        self.assertEqual(self.against(row(1.0), row(missing="not served", compared=True)), ["MiniLM"])

    def test_nothing_to_compare_and_another_machine_are_refused(self):
        for before, after in ((row(missing="not served"), row(0.5, compared=True)), (row(1.0), row(0.5))):
            with self.assertRaisesRegex(report.NotComparable, "no row"):
                self.against(before, after)
        with self.assertRaisesRegex(report.NotComparable, "another machine: its processor: one; here: two"):
            self.against(row(1.0), row(1.0, compared=True), here="two")


class Logs(unittest.TestCase):
    def test_h2load_rows_become_a_closed_loop(self):
        found = load.closed_of_log([(0, 200, 1000), (0, 200, 3000), (500_000, 500, 500_000)], "here")
        self.assertEqual((found.requests, found.ok, found.seconds, found.p50_ms), (3, 2, 1.0, 3.0))


class Counting(unittest.TestCase):
    def test_only_what_was_in_flight_may_be_missing_and_never_everything(self):
        self.assertTrue(Counts(good=936, bad=0).agree(1000, in_flight=64))
        self.assertFalse(Counts(good=935, bad=0).agree(1000, in_flight=64))
        self.assertFalse(Counts(good=0, bad=0).agree(50, in_flight=64))
        self.assertFalse(Counts(good=1000, bad=1).agree(1000, in_flight=64))

    def test_use_is_that_of_the_window_and_not_of_what_lies_around_it(self):
        looks = [Look(0, 0, 0), Look(10, 0, 0), Look(20, 10, 1), Look(30, 10, 5)]
        self.assertEqual(between(looks, 10, 20), Use(cpu=1.0, steal=0.1))
        self.assertEqual(between(looks, 15, 20), Use(cpu=1.0, steal=0.1))


if __name__ == "__main__":
    unittest.main()
