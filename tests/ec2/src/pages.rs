//! Pages: moto makes them of reservations alone, fails on a token that it does not know, and forgets a place whose item is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use crate::{answer::Refusal, query::Form, stand::locked};

/// What the pages that follow are to show, for each token.
#[derive(Debug, Default)]
pub(crate) struct Pages(Mutex<BTreeMap<String, BTreeSet<String>>>);

impl Pages {
    /// Keeps what is on the page that is asked for. Gives the token of the next one, if there is one.
    ///
    /// # Errors
    /// When the token or the size is none.
    pub(crate) fn cut<T>(
        &self,
        form: &Form,
        items: &mut Vec<T>,
        id: impl Fn(&T) -> String,
    ) -> Result<Option<String>, Refusal> {
        if let Some(token) = form.get("NextToken") {
            let pages = locked(&self.0);
            let wanted = pages.get(token);
            let wanted = wanted.ok_or_else(|| {
                Refusal::new("InvalidNextToken", format!("The token '{token}' is invalid or has expired."))
            })?;
            items.retain(|item| wanted.contains(&id(item)));
        }
        let Some(size) = form.get("MaxResults") else { return Ok(None) };
        let size = size.parse().ok().filter(|size| (1..=1000).contains(size)).ok_or_else(|| {
            Refusal::new("InvalidParameterValue", format!("Value ( {size} ) for parameter maxResults is invalid."))
        })?;
        if items.len() <= size {
            return Ok(None);
        }
        let rest = items.split_off(size).iter().map(id).collect();
        let mut pages = locked(&self.0);
        let token = format!("page-{}", pages.len());
        pages.insert(token.clone(), rest);
        Ok(Some(token))
    }
}
