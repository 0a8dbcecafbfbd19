//! The page of metrics, put together of the parts that models have in it. A part is written anew only where one of its numbers may
//! have changed: of a hundred models few are busy at a time, and to write a hundred series each takes longer than to copy them.

use std::{
    fmt,
    ops::{Deref, Range},
    sync::atomic::{AtomicU8, Ordering},
};

use prometheus_client::{encoding::text::encode_registry, registry::Registry};

/// How often a part is written after a change: whoever changes a number says so first, so that the page may be written in between.
const WRITINGS: u8 = 2;

/// Numbers of a model. Who reaches for them is taken to change them.
#[derive(Debug)]
pub struct Watched<T> {
    numbers: T,
    writings: AtomicU8,
}

impl<T> Watched<T> {
    /// Numbers that nobody has written yet.
    pub fn new(numbers: T) -> Self {
        Self { numbers, writings: AtomicU8::new(WRITINGS) }
    }

    /// The numbers, only to look at.
    pub fn peek(&self) -> &T {
        &self.numbers
    }

    /// Says that they have changed, or will.
    pub fn touch(&self) {
        // Looked at first: to write what is there already would take the cache's line from the other threads.
        if self.writings.load(Ordering::Relaxed) != WRITINGS {
            self.writings.store(WRITINGS, Ordering::Relaxed);
        }
    }

    /// Whether they are to be written now.
    fn is_due(&self) -> bool {
        let left = self.writings.load(Ordering::Relaxed);
        if left > 0 {
            // Where it fails, somebody has changed something meanwhile, and the count is full again.
            let _ = self.writings.compare_exchange(left, left - 1, Ordering::Relaxed, Ordering::Relaxed);
        }
        left > 0
    }
}

impl<T> Deref for Watched<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.touch();
        &self.numbers
    }
}

/// What a registry has to say, as it was written last.
#[derive(Debug, Default)]
pub struct Part {
    text: String,
    metrics: Vec<Written>,
}

/// Where a metric is in the text of its part.
#[derive(Debug)]
struct Written {
    /// Its help and type.
    head: Range<usize>,
    /// Its series.
    series: Range<usize>,
}

impl Part {
    /// Brings it up to date.
    ///
    /// # Errors
    /// What a metric says that refuses to be written.
    pub fn update<T>(&mut self, numbers: &Watched<T>, registry: &Registry) -> fmt::Result {
        if !numbers.is_due() {
            return Ok(());
        }
        self.text.clear();
        let result = encode_registry(&mut self.text, registry);
        self.metrics.clear();
        let (mut begin, mut rest) = (0, self.text.as_str());
        while !rest.is_empty() {
            let head = lines_while(rest, |line| line.starts_with('#'));
            let series = lines_while(&rest[head..], |line| !line.starts_with('#'));
            let (middle, end) = (begin + head, begin + head + series);
            self.metrics.push(Written { head: begin..middle, series: middle..end });
            (begin, rest) = (end, &self.text[end..]);
        }
        result
    }
}

/// The length of the lines at the beginning that are so.
fn lines_while(text: &str, is_so: impl Fn(&str) -> bool) -> usize {
    text.split_inclusive('\n').take_while(|line| is_so(line)).map(str::len).sum()
}

/// Writes the parts, the series of each metric together, as the format wants it.
pub fn write_together<'a>(page: &mut String, parts: impl IntoIterator<Item = &'a Part>) {
    let mut metrics: Vec<(&str, Vec<&str>)> = Vec::new();
    for part in parts {
        let mut next = 0;
        for Written { head, series } in &part.metrics {
            let (head, series) = (&part.text[head.clone()], &part.text[series.clone()]);
            // Models have the same metrics in the same order, but for a few that not all of them have.
            let known = metrics[next.min(metrics.len())..].iter().position(|(known, _)| *known == head);
            let at =
                known.map(|further| next + further).or_else(|| metrics.iter().position(|(known, _)| *known == head));
            let at = at.unwrap_or(metrics.len());
            if at == metrics.len() {
                metrics.push((head, Vec::new()));
            }
            metrics[at].1.push(series);
            next = at + 1;
        }
    }
    page.reserve(
        metrics.iter().map(|(head, series)| head.len() + series.iter().map(|one| one.len()).sum::<usize>()).sum(),
    );
    for (head, series) in metrics {
        page.push_str(head);
        series.into_iter().for_each(|one| page.push_str(one));
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    fn part(names: &[&'static str]) -> (Watched<Vec<Counter>>, Registry, Part) {
        let mut registry = Registry::default();
        let counters: Vec<_> = names.iter().map(|_| Counter::default()).collect();
        names.iter().zip(&counters).for_each(|(name, counter)| registry.register(*name, "Help", counter.clone()));
        (Watched::new(counters), registry, Part::default())
    }

    #[test]
    fn a_part_is_written_again_only_where_somebody_reached_for_its_numbers() {
        let (numbers, registry, mut part) = part(&["a"]);
        let mut text = || {
            part.update(&numbers, &registry).unwrap();
            part.text.clone()
        };
        assert!(text().ends_with("a_total 0\n"));
        // As if it happened while the page was written.
        numbers.peek()[0].inc();
        assert!(text().ends_with("a_total 1\n"));
        numbers.peek()[0].inc();
        assert!(text().ends_with("a_total 1\n"), "it need not be written");
        numbers[0].inc();
        assert!(text().ends_with("a_total 3\n"));
    }

    #[test]
    fn the_series_of_a_metric_stand_together_though_not_every_model_has_it() {
        let mut parts: Vec<_> = [&["a", "c"][..], &["a", "b", "c"], &["b"]].map(part).into();
        parts.iter_mut().for_each(|(numbers, registry, part)| part.update(numbers, registry).unwrap());
        let mut page = String::new();
        write_together(&mut page, parts.iter().map(|(_, _, part)| part));
        let series: Vec<_> = page.lines().filter(|line| !line.starts_with("# HELP")).collect();
        assert_eq!(
            series,
            [
                "# TYPE a counter",
                "a_total 0",
                "a_total 0",
                "# TYPE c counter",
                "c_total 0",
                "c_total 0",
                "# TYPE b counter",
                "b_total 0",
                "b_total 0"
            ]
        );
    }
}
