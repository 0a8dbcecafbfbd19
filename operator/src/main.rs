//! Ortolan's operator. See the library for what it is made of.

use anyhow::Context as _;
use clap::Parser as _;
use ortolan_operator::{operator, settings::Settings};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let filter = EnvFilter::try_new(&settings.log_level).context("--log-level is no filter")?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if settings.log_format == "json" {
        logs.json().flatten_event(true).init();
    } else {
        logs.init();
    }
    Ok(operator::run(settings).await?)
}
