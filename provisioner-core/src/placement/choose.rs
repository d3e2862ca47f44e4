//! How a cell is chosen, with an explanation when none is.

use std::fmt;

use super::{Cell, CellState};
use crate::{
    control_plane::NewInstance,
    error::{Chain, Error, ErrorKind, Result},
    provisioner::Provisioner,
    types::CellName,
};

/// Chooses the cell of a new instance. Stored before anything is made, and made good in the transaction that accepts the
/// instance: whether there is room is decided there.
pub trait Placement: fmt::Debug + Send + Sync + 'static {
    /// Chooses among the cells, in the order of their names.
    ///
    /// # Errors
    /// An error that explains of each cell why it was not chosen.
    fn choose(&self, new: &NewInstance, cells: &[&Cell]) -> Result<CellName>;
}

/// Takes the cell that the request names, or the only one that there is.
#[derive(Debug, Clone, Copy, Default)]
pub struct NamedOrOnly;

impl Placement for NamedOrOnly {
    fn choose(&self, new: &NewInstance, cells: &[&Cell]) -> Result<CellName> {
        let names = || cells.iter().map(|cell| cell.name.as_str()).collect::<Vec<_>>().join(", ");
        let cell = match (&new.cell, cells) {
            (Some(name), _) => cells
                .iter()
                .find(|cell| cell.name == *name)
                .ok_or_else(|| unplaced(format!("no cell {name}: expected one of {}", names())))?,
            (None, [only]) => only,
            (None, _) => return Err(unplaced(format!("none named: expected one of {}", names()))),
        };
        if cell.state != CellState::Open {
            return Err(unplaced(format!("{}: {}, takes no new instances", cell.name, cell.state)));
        }
        new.spec.check()?;
        match cell.provisioner.validate(&new.spec, None) {
            Ok(()) => Ok(cell.name.clone()),
            // With one cell to choose from, its own answer says it best: it names the field.
            Err(error) if error.field().is_some() => Err(error.with_instance(&new.id)),
            Err(error) => Err(unplaced(format!("{}: {}", cell.name, Chain(&error)))),
        }
    }
}

fn unplaced(explanation: String) -> Error {
    Error::new(ErrorKind::InvalidSpec, "place")
        .with_field("cell")
        .with_customer_message("This cannot be hosted here.")
        .with_message(explanation)
}
