//! `images build [--compiled] [NAME…]`: builds our container images and prints where their archives are.
//! `images render NAME`: prints the Dockerfile as it is built.

#![allow(clippy::disallowed_methods, reason = "a harness is told by its environment what to use")]

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use ortolan_tests::images::{self, ImageError, ImageSpec};

const COMPILED: &str = "compiled";

fn main() -> ExitCode {
    let matches = command().get_matches();
    let done = match matches.subcommand() {
        Some(("build", matches)) => {
            let is_compiled = matches.get_flag(COMPILED);
            chosen(matches).into_iter().try_for_each(|spec| build(spec, is_compiled))
        }
        Some(("render", matches)) => chosen(matches).into_iter().try_for_each(render),
        _ => Ok(()),
    };
    done.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

fn command() -> Command {
    let names = images::ALL.iter().map(|spec| spec.name).chain(["all"]);
    let name = Arg::new("name").value_parser(clap::builder::PossibleValuesParser::new(names)).help("Which image");
    let compiled = Arg::new(COMPILED).long(COMPILED).action(ArgAction::SetTrue).help(
        "With the programs that lie beside this one, as the tests have them, instead of compiling optimised ones",
    );
    let build = Command::new("build").about("Builds images, all if none is named").arg(name.clone().num_args(0..));
    Command::new("images")
        .about("Builds Ortolan's container images without a registry and without Docker")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(build.arg(compiled))
        .subcommand(Command::new("render").about("Prints the Dockerfile with its arguments").arg(name.required(true)))
}

fn chosen(matches: &ArgMatches) -> Vec<&'static ImageSpec> {
    let names: Vec<&String> = matches.get_many("name").unwrap_or_default().collect();
    let is_all = names.is_empty() || names.iter().any(|name| *name == "all");
    images::ALL.iter().filter(|spec| is_all || names.iter().any(|name| *name == spec.name)).collect()
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn build(spec: &ImageSpec, is_compiled: bool) -> Result<(), ImageError> {
    let build = if is_compiled { images::build_with_compiled } else { images::build };
    let image = build(spec, &progress)?;
    println!("{}\t{}\t{:.1} MB", image.reference, image.archive.display(), image.bytes as f64 / 1e6);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn render(spec: &ImageSpec) -> Result<(), ImageError> {
    print!("{}", images::render(spec)?);
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a person waits for minutes and wants to know what for")]
fn progress(step: &str) {
    eprintln!("{step}");
}

#[expect(clippy::print_stderr, reason = "the reason why there is no image")]
fn fail(error: &ImageError) -> ExitCode {
    eprintln!("error: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        eprintln!("  because: {cause}");
        source = cause.source();
    }
    ExitCode::FAILURE
}
