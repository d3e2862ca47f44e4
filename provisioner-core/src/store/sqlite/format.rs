//! SQLite's rows, as the shared formats read them.

use rusqlite::Row;

use super::super::{
    StoreError,
    format::{Columns, damaged},
};

impl Columns for Row<'_> {
    fn text(&self, index: usize) -> Result<&str, StoreError> {
        self.get_ref(index)?.as_str().map_err(|error| damaged("a row", error))
    }

    fn text_or_null(&self, index: usize) -> Result<Option<&str>, StoreError> {
        self.get_ref(index)?.as_str_or_null().map_err(|error| damaged("a row", error))
    }

    fn number(&self, index: usize) -> Result<i64, StoreError> {
        Ok(self.get(index)?)
    }

    fn number_or_null(&self, index: usize) -> Result<Option<i64>, StoreError> {
        Ok(self.get(index)?)
    }
}
