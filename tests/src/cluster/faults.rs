//! Parts of a running cluster are killed, stopped, frozen and started again.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::process::Process;
use super::{Cluster, ClusterError, Machinery, Part, start};

/// How long a part may take to obey a signal: 20 s, since one that is asked to end finishes its work first.
const SIGNAL_LIMIT: Duration = Duration::from_secs(20);

impl Cluster {
    /// Kills a part as a crash would.
    ///
    /// # Errors
    /// If the part does not run.
    pub fn kill(&self, part: Part) -> Result<(), ClusterError> {
        self.ours("kill a part")?.end_part(part, Signal::KILL)
    }

    /// Asks a part to end, and waits until it has.
    ///
    /// # Errors
    /// If the part does not run, or does not end within 20 s.
    pub fn stop(&self, part: Part) -> Result<(), ClusterError> {
        self.ours("stop a part")?.end_part(part, Signal::TERM)
    }

    /// Stops a part in its tracks, as an overloaded machine would. Its connections stay open.
    ///
    /// # Errors
    /// If the part does not run.
    pub fn freeze(&self, part: Part) -> Result<(), ClusterError> {
        let machinery = self.ours("freeze a part")?;
        let process = machinery.running(part)?;
        machinery.signal(part, Signal::STOP)?;
        Machinery::obeyed(part, process, || process.is_frozen() || !process.is_alive())
    }

    /// Lets a frozen part go on.
    ///
    /// # Errors
    /// If the part does not run.
    pub fn thaw(&self, part: Part) -> Result<(), ClusterError> {
        self.ours("thaw a part")?.signal(part, Signal::CONT)
    }

    /// Starts a part that has ended.
    ///
    /// # Errors
    /// If it runs, or cannot be started.
    pub fn start(&self, part: Part) -> Result<(), ClusterError> {
        let machinery = self.ours("start a part")?;
        if machinery.living(part)?.is_some() {
            return Err(ClusterError::RunsAlready(part));
        }
        if part.belongs_to_a_node() && !machinery.place.has_node() {
            return Err(ClusterError::NoNode("start a part of a node"));
        }
        machinery.launch(part).map(drop)
    }

    /// Kills a part, if it runs, and starts it again.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart(&self, part: Part) -> Result<(), ClusterError> {
        if self.is_running(part)? {
            self.kill(part)?;
        }
        self.start(part)
    }

    /// Whether a part runs; a frozen one does.
    ///
    /// # Errors
    /// If the cluster is not ours.
    pub fn is_running(&self, part: Part) -> Result<bool, ClusterError> {
        Ok(self.ours("look at a part")?.living(part)?.is_some())
    }

    /// Whether a part is frozen.
    ///
    /// # Errors
    /// If the cluster is not ours.
    pub fn is_frozen(&self, part: Part) -> Result<bool, ClusterError> {
        Ok(self.ours("look at a part")?.living(part)?.is_some_and(Process::is_frozen))
    }
}

impl Machinery {
    pub(super) fn living(&self, part: Part) -> Result<Option<Process>, ClusterError> {
        Ok(self.folder.load_process(part)?.filter(|process| process.is_alive()))
    }

    fn running(&self, part: Part) -> Result<Process, ClusterError> {
        self.living(part)?.ok_or_else(|| self.ended(part))
    }

    pub(super) fn ended(&self, part: Part) -> ClusterError {
        start::ended(&self.folder, part)
    }

    fn signal(&self, part: Part, signal: Signal) -> Result<(), ClusterError> {
        if self.running(part)?.signal(signal)? { Ok(()) } else { Err(self.ended(part)) }
    }

    fn end_part(&self, part: Part, signal: Signal) -> Result<(), ClusterError> {
        let process = self.running(part)?;
        process.signal(signal)?;
        Self::obeyed(part, process, || !process.is_alive())
    }

    /// A signal is sent at once and takes its effect a moment later, one thread after another.
    fn obeyed(part: Part, process: Process, reached: impl Fn() -> bool) -> Result<(), ClusterError> {
        let begun = Instant::now();
        while !reached() {
            if begun.elapsed() > SIGNAL_LIMIT {
                return Err(ClusterError::Stubborn { part, pid: process.pid() });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}
