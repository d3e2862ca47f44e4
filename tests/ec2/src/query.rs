//! The parameters of a request, as AWS's query protocol has them.

/// The parameters of a request, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Form(Vec<(String, String)>);

/// What the items of an answer have to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) name: String,
    pub(crate) values: Vec<String>,
}

impl Form {
    pub(crate) fn new(action: &str) -> Self {
        Self(Vec::new()).with("Action", action).with("Version", "2016-11-15")
    }

    pub(crate) fn parse(body: &[u8]) -> Self {
        Self(form_urlencoded::parse(body).into_owned().collect())
    }

    pub(crate) fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.push((name.into(), value.into()));
        self
    }

    /// The same with the parameters of another.
    pub(crate) fn extended(mut self, other: &Self) -> Self {
        self.0.extend_from_slice(&other.0);
        self
    }

    /// One parameter for each value: `NAME.1`, `NAME.2` and so on.
    pub(crate) fn with_list<T: AsRef<str>>(self, name: &str, values: impl IntoIterator<Item = T>) -> Self {
        let numbered = values.into_iter().enumerate();
        numbered.fold(self, |form, (at, value)| form.with(format!("{name}.{}", at + 1), value.as_ref()))
    }

    pub(crate) fn with_filter(self, name: &str, value: &str) -> Self {
        self.with("Filter.1.Name", name).with("Filter.1.Value.1", value)
    }

    /// Only with the parameters whose names are like this.
    pub(crate) fn only(&self, keeps: impl Fn(&str) -> bool) -> Self {
        Self(self.0.iter().filter(|(name, _)| keeps(name)).cloned().collect())
    }

    /// What is below a name, without that.
    pub(crate) fn below(&self, prefix: &str) -> Self {
        let below = self.0.iter().filter_map(|(name, value)| {
            Some((name.strip_prefix(prefix)?.strip_prefix('.')?.to_owned(), value.clone()))
        });
        Self(below.collect())
    }

    pub(crate) fn encoded(&self) -> String {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.0).finish()
    }

    /// The same for requests that mean the same.
    pub(crate) fn sorted(mut self) -> Self {
        self.0.sort();
        self
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(_, value)| &**value)
    }

    pub(crate) fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    pub(crate) fn action(&self) -> &str {
        self.get("Action").unwrap_or_default()
    }

    /// Whether a parameter is below a name, as `Filter.1.Name` is below `Filter`.
    pub(crate) fn has(&self, prefix: &str) -> bool {
        self.0.iter().any(|(name, _)| is_below(name, prefix))
    }

    /// The values of `NAME.1`, `NAME.2` and so on.
    pub(crate) fn list(&self, prefix: &str) -> Vec<String> {
        self.numbers(prefix).filter_map(|number| self.get(&format!("{prefix}.{number}"))).map(str::to_owned).collect()
    }

    /// The numbers right below a name, in order.
    pub(crate) fn numbers(&self, prefix: &str) -> impl Iterator<Item = usize> + use<> {
        let rests = self.0.iter().filter_map(|(name, _)| name.strip_prefix(prefix)?.strip_prefix('.'));
        let mut numbers: Vec<usize> = rests.filter_map(|rest| rest.split('.').next()?.parse().ok()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter()
    }

    pub(crate) fn filters(&self) -> Vec<Filter> {
        let filter = |number| {
            let name = self.get(&format!("Filter.{number}.Name"))?.to_owned();
            Some(Filter { name, values: self.list(&format!("Filter.{number}.Value")) })
        };
        self.numbers("Filter").filter_map(filter).collect()
    }

    /// The same with other filters.
    pub(crate) fn with_filters<'a>(&self, filters: impl IntoIterator<Item = &'a Filter>) -> Self {
        let numbered = filters.into_iter().enumerate();
        numbered.fold(self.only(|name| !is_below(name, "Filter")), |form, (at, filter)| {
            let prefix = format!("Filter.{}", at + 1);
            form.with(format!("{prefix}.Name"), &*filter.name).with_list(&format!("{prefix}.Value"), &filter.values)
        })
    }

    /// Every machine and volume that it names.
    pub(crate) fn resources(&self) -> Vec<String> {
        let is_one = |name: &str, value: &str| {
            let name = name.split('.').next().unwrap_or_default();
            matches!(name, "InstanceId" | "VolumeId" | "ResourceId")
                && (value.starts_with("i-") || value.starts_with("vol-"))
        };
        let named = self.0.iter().filter(|(name, value)| is_one(name, value));
        named.map(|(_, value)| value.clone()).collect()
    }
}

/// Whether a name is another with more behind it.
pub(crate) fn is_below(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_filters_are_numbered() {
        let form =
            Form::parse(b"InstanceId.10=b&InstanceId.2=a&Filter.1.Name=tag%3Ax&Filter.1.Value.1=1&Filter.1.Value.2=2");
        assert_eq!(form.list("InstanceId"), ["a", "b"]);
        let filters = form.filters();
        assert_eq!(filters, [Filter { name: "tag:x".to_owned(), values: vec!["1".to_owned(), "2".to_owned()] }]);
        assert_eq!(form.with_filters(&filters).filters(), filters);
        assert_eq!(form.with_filters([]).filters(), []);
    }
}
