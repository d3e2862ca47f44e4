//! What one run gave, as a line that another process reads. The rivals outside the workspace include this file.

use serde::{Deserialize, Serialize};

use super::report::Samples;

/// What one run gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// Durable steps.
    pub steps: usize,
    /// Requests that became true.
    pub operations: usize,
    /// How long it took.
    pub seconds: f64,
    /// Half of the requests were true after this; nothing where nobody waits.
    pub p50_ms: Option<f64>,
    /// 99 of a hundred requests were true after this.
    pub p99_ms: Option<f64>,
    /// What the whole process used of all processors meanwhile.
    pub cpu_seconds: f64,
    /// What SQLite says of itself and of how it keeps what it was given.
    pub sqlite: String,
}

impl Measured {
    /// With the times from requests until they were true.
    #[must_use]
    pub fn with_samples(mut self, samples: &Samples) -> Self {
        let ms = |percent| Some(samples.percentile(percent).as_secs_f64() * 1e3);
        (self.p50_ms, self.p99_ms) = (ms(50), ms(99));
        self
    }

    /// Prints it as a line.
    ///
    /// # Panics
    /// Never, as numbers and texts are JSON.
    pub fn tell(&self) {
        println!("{}", serde_json::to_string(self).expect("numbers and texts are JSON"));
    }
}

/// What this process has used of all processors so far.
///
/// # Panics
/// Where there is no `/proc`.
#[must_use]
pub fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("this is Linux");
    // The name of the program may hold anything, but no field behind it holds a bracket.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>();
    // Linux tells them in hundredths of a second on every machine.
    ticks / 100.0
}
