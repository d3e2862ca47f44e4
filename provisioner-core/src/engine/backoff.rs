//! How long to wait after a failure.

use std::time::Duration;

use crate::{
    engine::EngineConfig,
    error::{Error, Retry},
    seams::Random,
};

/// The delay before the next try after `attempts` failures in a row: doubles from failure to failure up to a bound, with
/// full jitter, and never less than the provider asked for.
pub(crate) fn delay(config: &EngineConfig, random: &Random, attempts: u32, error: Option<&Error>) -> Duration {
    let doubled = config.backoff_min.saturating_mul(2_u32.saturating_pow(attempts.saturating_sub(1).min(24)));
    let jittered = random.up_to(doubled.min(config.backoff_max));
    match error.map(Error::retry) {
        // The jitter on top keeps all who were told the same time from coming back at once, and a short time from being
        // asked for again and again.
        Some(Retry::After(asked)) => asked
            .saturating_add(jittered.min(asked.saturating_mul(4).saturating_add(config.backoff_min.saturating_mul(8)))),
        Some(Retry::Anew) => random.up_to(config.backoff_min),
        _ => jittered.max(config.backoff_min / 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn delays_grow_are_bounded_and_heed_the_provider() {
        let config = EngineConfig::default();
        let random = Random::from_seed(1);
        for attempts in 1..200 {
            let delay = delay(&config, &random, attempts, None);
            assert!(delay >= config.backoff_min / 2 && delay <= config.backoff_max, "{attempts}: {delay:?}");
        }
        let longest = (0..50).map(|_| delay(&config, &random, 1, None)).max().unwrap();
        assert!(longest <= config.backoff_min);
        let asked = Duration::from_secs(30);
        let error = Error::new(ErrorKind::Throttled, "create").with_retry(Retry::After(asked));
        assert!((0..50).all(|_| delay(&config, &random, 1, Some(&error)) >= asked));
    }
}
