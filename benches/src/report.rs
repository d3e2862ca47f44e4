//! Figures as rows of a table that can be pasted into the docs.

use std::time::Duration;

/// Prints the head of a table.
pub fn heading(columns: &[&str]) {
    println!("| {} |", columns.join(" | "));
    println!("|{}", "---|".repeat(columns.len()));
}

/// Prints one row of a table.
pub fn row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}

/// Times that were taken.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Takes one more in.
    pub fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// Takes others in.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// The smallest time that at least this many per cent did not exceed.
    ///
    /// # Panics
    /// When none was taken.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted[(sorted.len() * percent).div_ceil(100).saturating_sub(1)]
    }

    /// Half and 99 per cent, in milliseconds.
    #[must_use]
    pub fn p50_p99(&self) -> String {
        let ms = |percent| self.percentile(percent).as_secs_f64() * 1e3;
        format!("{:.1} / {:.1} ms", ms(50), ms(99))
    }
}
