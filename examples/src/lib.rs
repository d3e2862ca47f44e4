//! See examples/.
