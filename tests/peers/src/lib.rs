//! Where tests find the software that nobody here wrote, once `cargo xtask peers` has prepared it.

pub mod kubernetes;
pub mod postgres;

/// Whether a run does not count without this peer: `REQUIRED_PEERS` names it.
fn is_required(peer: &str) -> bool {
    std::env::var("REQUIRED_PEERS").unwrap_or_default().split(',').any(|required| required.trim() == peer)
}
