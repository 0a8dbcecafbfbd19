"""The report's arithmetic: `python3 -m unittest discover -s tests/bench -t tests`."""

import json
import unittest

from bench import load, report
from bench.report import Goal, Row, at_least, at_most

GOAL = at_least(0.95)


def row(*values: float, goal: Goal = GOAL, **more) -> Row:
    return Row("throughput", "MiniLM", goal, values, **more)


class Verdicts(unittest.TestCase):
    def test_the_median_of_the_rounds_is_held_against_the_goal(self):
        self.assertEqual(row(0.5, 0.96, 0.97).verdict, "met")
        self.assertEqual(row(0.5, 0.94, 0.97).verdict, "missed")

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
        table = report.markdown_table([row(0.94, 0.96, 0.97, figures={"bare": 341.26})])
        self.assertIn("| MiniLM | ≥ 0.95 | 0.960 (0.940..0.970) | met | bare 341 |", table)

    def test_a_reason_stands_where_figures_would(self):
        self.assertIn("| - | not measured | not served |", report.markdown_table([row(missing="not served")]))

    def test_numbers_have_three_or_four_digits(self):
        self.assertEqual([report.number(n) for n in (0.9531, 6.789, 28.41, 34061.2, 0.0, float("nan"))],
                         ["0.953", "6.79", "28.4", "34,061", "0", "-"])  # fmt: skip


class Comparison(unittest.TestCase):
    def against(self, before: Row, after: Row) -> list[str]:
        return [loss.name for loss in report.losses(json.loads(report.as_json({}, [before], {})), [after])]

    def test_a_loss_over_five_percent_is_found_in_either_direction(self):
        self.assertEqual(self.against(row(1.0), row(0.94, compared=True)), ["MiniLM"])
        slow = row(106.0, goal=at_most(150), compared=True)
        self.assertEqual(self.against(row(100.0), slow), ["MiniLM"])

    def test_smaller_losses_gains_and_rows_that_do_not_count_are_no_loss(self):
        self.assertEqual(self.against(row(1.0), row(0.96, compared=True)), [])
        self.assertEqual(self.against(row(1.0), row(1.5, compared=True)), [])
        self.assertEqual(self.against(row(1.0), row(0.5)), [])

    def test_what_one_of_the_runs_lacks_is_passed_over(self):
        self.assertEqual(self.against(row(missing="not served"), row(0.5, compared=True)), [])
        self.assertEqual(self.against(row(1.0), row(missing="not served", compared=True)), [])


class Logs(unittest.TestCase):
    def test_h2load_rows_become_a_closed_loop(self):
        found = load.closed_of_log([(0, 200, 1000), (0, 200, 3000), (500_000, 500, 500_000)], "here")
        self.assertEqual((found.requests, found.ok, found.seconds, found.p50_ms), (3, 2, 1.0, 3.0))


if __name__ == "__main__":
    unittest.main()
