//! Answers as trees, so that parts of them can be replaced.

use std::fmt;

use quick_xml::{
    Reader,
    escape::{escape, resolve_predefined_entity},
    events::{BytesStart, Event},
};

/// An element: with children, or with text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: String,
    attributes: Vec<(String, String)>,
    pub(crate) text: String,
    pub(crate) children: Vec<Self>,
}

impl Element {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    pub(crate) fn with(mut self, child: Self) -> Self {
        self.children.push(child);
        self
    }

    pub(crate) fn with_text(self, name: &str, text: &str) -> Self {
        self.with(Self { text: text.to_owned(), ..Self::new(name) })
    }

    pub(crate) fn with_attribute(mut self, name: &str, value: &str) -> Self {
        self.attributes.retain(|(known, _)| known != name);
        self.attributes.push((name.to_owned(), value.to_owned()));
        self
    }

    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let problem = |error: &dyn fmt::Display| format!("not XML: {error}");
        let mut reader = Reader::from_str(text);
        let mut open = vec![Self::default()];
        loop {
            let last = open.last_mut().ok_or("not XML: more ends than starts")?;
            match reader.read_event().map_err(|error| problem(&error))? {
                Event::Start(start) => open.push(Self::started(&start)?),
                Event::Empty(start) => last.children.push(Self::started(&start)?),
                Event::Text(text) => last.text += &text,
                Event::CData(text) => last.text += &text,
                Event::GeneralRef(name) => match name.resolve_char_ref().map_err(|error| problem(&error))? {
                    Some(character) => last.text.push(character),
                    None => last.text += resolve_predefined_entity(&name).ok_or("not XML: an unknown entity")?,
                },
                Event::End(_) => {
                    let mut done = open.pop().ok_or("not XML: more ends than starts")?;
                    if !done.children.is_empty() {
                        done.text.clear();
                    }
                    open.last_mut().ok_or("not XML: more ends than starts")?.children.push(done);
                }
                Event::Eof => break,
                _ => {}
            }
        }
        match <[Self; 1]>::try_from(open) {
            Ok([mut top]) if top.children.len() == 1 => Ok(top.children.remove(0)),
            _ => Err("not XML: expected one element".to_owned()),
        }
    }

    fn started(start: &BytesStart<'_>) -> Result<Self, String> {
        let mut element = Self::new(start.name().as_ref());
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|error| format!("not XML: {error}"))?;
            element.attributes.push((attribute.key.as_ref().to_owned(), attribute.value.into_owned()));
        }
        Ok(element)
    }

    pub(crate) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The text of the element that these names lead to; none is as good as an empty one.
    pub(crate) fn at(&self, names: &[&str]) -> &str {
        let found = names.iter().try_fold(self, |element, name| element.child(name));
        found.map_or("", |element| &element.text)
    }

    /// The items of a list.
    pub(crate) fn items(&self, list: &str) -> &[Self] {
        self.child(list).map_or(&[], |list| &list.children)
    }

    /// The items of a list, to be changed. It is made when there is none.
    pub(crate) fn items_mut(&mut self, list: &str) -> &mut Vec<Self> {
        &mut self.made(list).children
    }

    /// Replaces a child, or adds it.
    pub(crate) fn put(&mut self, child: Self) {
        let place = self.made(&child.name);
        *place = child;
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.children.retain(|child| child.name != name);
    }

    /// Itself and everything below, each element once.
    pub(crate) fn for_each(&mut self, change: &mut impl FnMut(&mut Self)) {
        change(self);
        for child in &mut self.children {
            child.for_each(change);
        }
    }

    /// Whether a text occurs in any text below.
    pub(crate) fn mentions(&self, text: &str) -> bool {
        self.text.contains(text) || self.children.iter().any(|child| child.mentions(text))
    }

    fn made(&mut self, name: &str) -> &mut Self {
        let at = self.children.iter().position(|child| child.name == name).unwrap_or_else(|| {
            self.children.push(Self::new(name));
            self.children.len() - 1
        });
        &mut self.children[at]
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}", self.name)?;
        for (name, value) in &self.attributes {
            write!(f, " {name}=\"{value}\"")?;
        }
        write!(f, ">{}", escape(&self.text))?;
        self.children.iter().try_for_each(|child| child.fmt(f))?;
        write!(f, "</{}>", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written() {
        let text = r#"<A xmlns="http://a/"><b>1 &lt; 2 &amp; &#65;</b><list><item>x</item><item/></list></A>"#;
        let element = Element::parse(&format!("<?xml version=\"1.0\"?>\n{text}")).unwrap();
        assert_eq!(element.at(&["b"]), "1 < 2 & A");
        assert_eq!(element.items("list").len(), 2);
        assert_eq!(Element::parse(&element.to_string()).unwrap(), element);
        assert!(Element::parse("<html><p></html>").is_err());
    }
}
