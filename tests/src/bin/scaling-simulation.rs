//! `scaling-simulation FOLDER`: runs every autoscaler with every target on every load, prints what they cost and writes it to
//! `results.json` and `results.md` in the folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use clap::Parser;
use ortolan_tests::{
    autoscaling::{
        Course,
        cases::Case,
        compare::{Outcome, TARGETS, VARIATIONS, Variation, Who, autoscaler, outcome},
        run,
        table::{self, ShapeCourses},
        traces::Shape,
    },
    report::Report,
};

/// Loads whose course is drawn; the held-out case with pods that take half a minute to start.
const DRAWN: [Shape; 3] = [Shape::Step, Shape::Spike, Shape::Diurnal];
const DRAWN_NUMBER: u64 = 3;

/// What other constants would cost is asked of cases of less than half a day.
const LONGEST_VARIED_HOURS: f64 = 12.0;

#[derive(Parser)]
#[command(about = "Autoscalers beside each other: replica-hours at equal violations")]
struct Arguments {
    /// Where results go.
    folder: PathBuf,
}

fn main() -> ExitCode {
    let Arguments { folder } = Arguments::parse();
    match simulate(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            Report::to_stderr().say(&format!("error: {}: {error}", folder.display()));
            ExitCode::FAILURE
        }
    }
}

fn simulate(folder: &Path) -> io::Result<()> {
    let report = Report::to_stderr();
    let step = report.step("loads");
    let cases = Case::all();
    step.done();
    let step = report.step("every autoscaler, target and load");
    let outcomes = outcomes(&cases, &Who::ALL, |_| {});
    step.done();
    let step = report.step("other constants");
    let tuning: Vec<Case> =
        cases.iter().filter(|it| !it.is_held_out && it.hours() < LONGEST_VARIED_HOURS).cloned().collect();
    let varied: Vec<(Variation, Vec<Outcome>)> =
        VARIATIONS.map(|variation| (variation, self::outcomes(&tuning, &[Who::Ours], variation.apply))).into();
    step.done();
    let (ratios, shares) = (table::ratios(&cases, &outcomes), table::shares(&cases, &outcomes));
    let foreseen = table::foreseen(&cases, &outcomes);
    let (variations, steadiness) = (table::variations(&outcomes, &varied), table::steadiness(&cases, &outcomes));
    let tables = format!("{ratios}\n\n{shares}\n\n{foreseen}\n\n{variations}\n\n{steadiness}\n");
    fs::create_dir_all(folder)?;
    fs::write(folder.join("results.md"), &tables)?;
    fs::write(folder.join("results.json"), format!("{:#}\n", table::json(&cases, &outcomes, &courses())))?;
    print(&tables);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(tables: &str) {
    print!("{tables}");
}

/// All on all, on all cores, in the order of their names whichever ends first.
fn outcomes(cases: &[Case], who: &[Who], vary: fn(&mut ortolan_operator::scaling::Policy)) -> Vec<Outcome> {
    let of_case = |case| who.iter().flat_map(move |who| TARGETS.map(|target| (case, *who, target)));
    let runs: Vec<(&Case, Who, f64)> = cases.iter().flat_map(of_case).collect();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::with_capacity(runs.len()));
    let work = || {
        while let Some((number, (case, who, target))) = {
            let number = next.fetch_add(1, Ordering::Relaxed);
            runs.get(number).map(|run| (number, *run))
        } {
            let outcome = outcome(case, who, target, vary);
            found.lock().unwrap_or_else(PoisonError::into_inner).push((number, outcome));
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Replicas over time, for plots.
fn courses() -> Vec<ShapeCourses> {
    let who = [Who::Ours, Who::HpaAverage, Who::Knative];
    let drawn = DRAWN.map(|shape| {
        let case = Case::new(shape, DRAWN_NUMBER);
        let every = (case.levels.len() / 540).max(1);
        let course = |who| {
            let course = run(&case, autoscaler(&case, who, table::SHOWN_TARGET, |_| {}).as_mut()).1;
            let thinned = |line: Vec<u32>| line.into_iter().step_by(every).collect();
            (who, Course { wanted: thinned(course.wanted), ready: thinned(course.ready) })
        };
        let courses = who.map(course).into();
        (shape, case.levels.iter().copied().step_by(every).collect(), courses)
    });
    drawn.into()
}
