//! What the kernel knows of this process, by the names that all client libraries have for it.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::memory;

const OF_PROCESS: &str = "/proc/self/stat";

/// In a second: Linux tells programs the same, whatever its own clock is.
const TICKS: f64 = 100.0;

/// `process_*`, looked up when somebody scrapes; nothing where there is no procfs.
#[derive(Debug)]
pub struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        if let Some(seconds) = fs::read_to_string(OF_PROCESS).ok().and_then(|stat| cpu_seconds(&stat)) {
            let help = "Processor time, user and system, in seconds";
            let cpu = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(cpu)?;
        }
        if let Some(memory) = memory::read() {
            let help = "Memory that is really there";
            let resident = encoder.encode_descriptor("process_resident_memory_bytes", help, None, MetricType::Gauge)?;
            ConstGauge::new(memory.resident_bytes as f64).encode(resident)?;
        }
        Ok(())
    }
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name of the program is in parentheses, and may have some, and spaces, in it.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11).map(str::parse::<u64>);
    let (user, system) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some((user + system) as f64 / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        let stat = "7 (an (odd) name) S 1 7 7 0 -1 4194560 900 0 2 0 250 50 0 0 20 0 9 0 100 8192 300\n";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (short) S 1"), None);
        assert!(cpu_seconds(&fs::read_to_string(OF_PROCESS).unwrap()).is_some());
    }
}
