//! Ortolan's operator. See the library for what it is made of.

use anyhow::Context as _;
use clap::Parser as _;
use ortolan_operator::{logging, operator, settings::Settings};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let level = logging::start(&settings.log_level, settings.log_format == "json").context("--log-level")?;
    Ok(operator::run(settings, level).await?)
}
