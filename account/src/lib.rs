//! What backends of cloud accounts share: an account may make so many calls, and what many ask for at once is asked in one of them.
//!
//! [`Pace`] holds callers to the token buckets of the service, people first; [`Batches`] has callers within a short time share a
//! request; [`Turns`] lets one at a time be at a thing; [`Writes`] knows what a
//! service does not show yet. [`Failure`] is why such a call failed, as cheap to share. None of them knows a provider.

mod batch;
mod failure;
mod pace;
mod pages;
mod turns;
mod writes;

pub use crate::{
    batch::{Batches, GivenUp, Many},
    failure::{During, Failure},
    pace::{Bucket, NotSent, Pace, until},
    pages::{Page, pages},
    turns::{Turn, Turns},
    writes::{Write, Writes, Writing},
};
