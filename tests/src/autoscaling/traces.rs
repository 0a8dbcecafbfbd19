//! Loads over time, in replicas that would be busy all the time, and the requests that make them up.

use std::f64::consts::TAU;

use super::STEPS_PER_SECOND;

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// Always the same.
    Steady,
    /// Up by a factor and back, a few times.
    Step,
    /// Up over minutes, and down again.
    Ramp,
    /// A slow wave.
    Sine,
    /// Seconds to minutes of several times the load.
    Spike,
    /// Hardly anything, then full load, by chance.
    OnOff,
    /// Bursts whose height and length have no typical size.
    HeavyTailed,
    /// A day with its night, its lunch break, and minutes that differ.
    Diurnal,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Steady, Self::Step, Self::Ramp, Self::Sine, Self::Spike, Self::OnOff, Self::HeavyTailed, Self::Diurnal];

    /// Its name in tables and files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Step => "step",
            Self::Ramp => "ramp",
            Self::Sine => "sine",
            Self::Spike => "spike",
            Self::OnOff => "on-off",
            Self::HeavyTailed => "heavy-tailed",
            Self::Diurnal => "diurnal",
        }
    }

    /// The load of each of so many seconds.
    #[must_use]
    pub fn levels(self, seconds: usize, rng: &mut fastrand::Rng) -> Vec<f64> {
        match self {
            Self::Steady => steady(seconds, rng),
            Self::Step => step(seconds, rng),
            Self::Ramp => ramp(seconds, rng),
            Self::Sine => sine(seconds, rng),
            Self::Spike => spike(seconds, rng),
            Self::OnOff => on_off(seconds, rng),
            Self::HeavyTailed => heavy_tailed(seconds, rng),
            Self::Diurnal => diurnal(seconds, rng),
        }
    }
}

/// Requests of each step: by chance, as from many clients that know nothing of each other.
#[must_use]
pub fn arrivals(levels: &[f64], rate: f64, rng: &mut fastrand::Rng) -> Vec<u32> {
    let steps = STEPS_PER_SECOND as usize;
    let means = levels.iter().flat_map(|level| std::iter::repeat_n(level * rate / steps as f64, steps));
    means.map(|mean| poisson(mean, rng)).collect()
}

fn steady(seconds: usize, rng: &mut fastrand::Rng) -> Vec<f64> {
    vec![between(2.0, 10.0, rng); seconds]
}

fn step(seconds: usize, rng: &mut fastrand::Rng) -> Vec<f64> {
    let low = between(1.0, 3.0, rng);
    pieces(seconds, rng, |number, rng| {
        let level = if number % 2 == 0 { low } else { low * between(2.0, 5.0, rng) };
        (level, between(480.0, 1200.0, rng))
    })
}

fn ramp(seconds: usize, rng: &mut fastrand::Rng) -> Vec<f64> {
    let (low, high) = (between(1.0, 2.0, rng), between(6.0, 14.0, rng));
    let (hold, rise) = (between(300.0, 900.0, rng), between(240.0, 900.0, rng));
    let cycle = 2.0 * (hold + rise);
    let share = |at: f64| match at {
        at if at < hold => 0.0,
        at if at < hold + rise => (at - hold) / rise,
        at if at < 2.0 * hold + rise => 1.0,
        at => (cycle - at) / rise,
    };
    (0..seconds).map(|second| low + (high - low) * share(second as f64 % cycle)).collect()
}

fn sine(seconds: usize, rng: &mut fastrand::Rng) -> Vec<f64> {
    let (middle, swing, period) = (between(3.0, 8.0, rng), between(0.4, 0.85, rng), between(600.0, 2400.0, rng));
    (0..seconds).map(|second| middle * (1.0 + swing * (TAU * second as f64 / period).sin())).collect()
}

fn spike(seconds: usize, rng: &mut fastrand::Rng) -> Vec<f64> {
    let base = between(1.0, 3.0, rng);
    pieces(seconds, rng, |number, rng| match number % 2 {
        0 => (base, between(300.0, 900.0, rng)),
        _ => (base * between(3.0, 6.0, rng), between(30.0, 180.0, rng)),
    })
}

fn on_off(seconds: usize, rng: &mut fastrand::Rng) -> Vec<f64> {
    let high = between(3.0, 9.0, rng);
    let (on, off) = (between(120.0, 480.0, rng), between(120.0, 480.0, rng));
    pieces(seconds, rng, |number, rng| match number % 2 {
        0 => (0.1, exponential(off, rng)),
        _ => (high, exponential(on, rng)),
    })
}

fn heavy_tailed(seconds: usize, rng: &mut fastrand::Rng) -> Vec<f64> {
    let base = between(1.5, 3.0, rng);
    let mut levels = vec![base; seconds];
    let mut at = 0.0;
    loop {
        at += exponential(180.0, rng);
        let (height, length) = (pareto(1.5, rng).min(12.0) * 0.5 * base, (pareto(1.3, rng) * 15.0).min(900.0));
        if at as usize >= seconds {
            return levels;
        }
        let end = ((at + length) as usize).min(seconds);
        levels[at as usize..end].iter_mut().for_each(|level| *level = (*level + height).min(16.0));
    }
}

/// The whole run is one day, however long it takes.
fn diurnal(seconds: usize, rng: &mut fastrand::Rng) -> Vec<f64> {
    let (night, noon) = (between(0.6, 1.5, rng), between(7.0, 14.0, rng));
    let mut drift = 0.0;
    let mut levels = Vec::with_capacity(seconds);
    for second in 0..seconds {
        // Minutes differ by a tenth or so, and the difference lasts for about three of them.
        if second % 10 == 0 {
            drift = drift * 0.945 + 0.33 * 0.12 * normal(rng);
        }
        let hour = 24.0 * second as f64 / seconds as f64;
        let day = (0.5 - 0.5 * (TAU * (hour - 3.0) / 24.0).cos()).powf(1.5);
        let lunch = 1.0 - 0.25 * (-((hour - 12.5) / 0.7).powi(2)).exp();
        levels.push((night + (noon - night) * day * lunch) * f64::exp(drift));
    }
    levels
}

/// Levels that stay for a while each.
fn pieces(
    seconds: usize,
    rng: &mut fastrand::Rng,
    mut piece: impl FnMut(usize, &mut fastrand::Rng) -> (f64, f64),
) -> Vec<f64> {
    let mut levels = Vec::with_capacity(seconds);
    let mut number = 0;
    while levels.len() < seconds {
        let (level, length) = piece(number, rng);
        let end = seconds.min(levels.len() + (length as usize).max(1));
        levels.resize(end, level);
        number += 1;
    }
    levels
}

fn between(low: f64, high: f64, rng: &mut fastrand::Rng) -> f64 {
    low + (high - low) * rng.f64()
}

fn exponential(mean: f64, rng: &mut fastrand::Rng) -> f64 {
    -mean * (1.0 - rng.f64()).ln()
}

/// At least 1, and more than x with probability x^-shape.
fn pareto(shape: f64, rng: &mut fastrand::Rng) -> f64 {
    (1.0 - rng.f64()).powf(-1.0 / shape)
}

fn normal(rng: &mut fastrand::Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (TAU * rng.f64()).cos()
}

fn poisson(mean: f64, rng: &mut fastrand::Rng) -> u32 {
    // Far from zero the two distributions do not differ, and the exact one takes as many draws as it yields.
    if mean > 40.0 {
        return (mean + mean.sqrt() * normal(rng)).round().max(0.0) as u32;
    }
    let (limit, mut product, mut count) = (f64::exp(-mean), rng.f64(), 0);
    while product > limit {
        product *= rng.f64();
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rng() -> fastrand::Rng {
        fastrand::Rng::with_seed(5)
    }

    #[test]
    fn every_shape_is_as_long_as_asked_for_and_never_negative() {
        for shape in Shape::ALL {
            let levels = shape.levels(5_000, &mut rng());
            assert_eq!(levels.len(), 5_000, "{shape:?}");
            assert!(levels.iter().all(|level| (0.0..100.0).contains(level)), "{shape:?}");
            assert_eq!(levels, shape.levels(5_000, &mut rng()), "the same seed makes the same trace");
        }
    }

    #[test]
    fn requests_have_the_mean_and_the_variance_of_chance() {
        for mean in [0.3, 8.0, 60.0] {
            let mut rng = rng();
            let drawn: Vec<f64> = (0..20_000).map(|_| f64::from(poisson(mean, &mut rng))).collect();
            let average = drawn.iter().sum::<f64>() / 20_000.0;
            let variance = drawn.iter().map(|it| (it - average).powi(2)).sum::<f64>() / 20_000.0;
            assert!((average / mean - 1.0).abs() < 0.03, "{average}");
            assert!((variance / mean - 1.0).abs() < 0.05, "{variance}");
        }
    }
}
