//! Reading a spec from the formats that people write.

use serde::de::DeserializeOwned;

use super::spec::{InstanceSpec, InvalidSpec};

/// A format that a spec can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecFormat {
    /// JSON.
    Json,
    /// TOML.
    Toml,
    /// YAML.
    Yaml,
}

impl SpecFormat {
    /// The format that a file name's ending stands for, if any.
    #[must_use]
    pub fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "json" => Some(Self::Json),
            "toml" => Some(Self::Toml),
            "yaml" | "yml" => Some(Self::Yaml),
            _ => None,
        }
    }

    /// Reads and checks a spec.
    ///
    /// # Errors
    /// [`InvalidSpec`] naming the field that is wrong, unknown or missing, and what it should be.
    pub fn read(self, text: &str) -> Result<InstanceSpec, InvalidSpec> {
        let spec: InstanceSpec = match self {
            Self::Json => {
                let mut reader = serde_json::Deserializer::from_str(text);
                let spec = with_path(&mut reader, ToString::to_string)?;
                reader.end().map_err(|error| whole(error.to_string()))?;
                spec
            }
            // The message alone: in full, the error quotes the line, and that may hold a secret put in the wrong place.
            Self::Toml => {
                let reader = toml::Deserializer::parse(text).map_err(|error| whole(error.message().to_owned()))?;
                with_path(reader, |error| error.message().to_owned())?
            }
            Self::Yaml => with_path(yaml(text)?, ToString::to_string)?,
        };
        spec.check()?;
        Ok(spec)
    }
}

/// YAML is read into a tree first, so that its errors name fields the way the others do.
fn yaml(text: &str) -> Result<serde_json::Value, InvalidSpec> {
    serde_saphyr::from_str(text).map_err(|error| whole(error.without_snippet().to_string()))
}

fn with_path<'de, T: DeserializeOwned, D: serde::Deserializer<'de>>(
    reader: D,
    message: impl FnOnce(&D::Error) -> String,
) -> Result<T, InvalidSpec> {
    serde_path_to_error::deserialize(reader).map_err(|error| {
        let path = error.path().to_string();
        let field = if matches!(path.as_str(), "." | "?") { "spec".to_owned() } else { path };
        InvalidSpec::new(field, message(error.inner()).trim_end())
    })
}

fn whole(message: String) -> InvalidSpec {
    InvalidSpec::new("spec", message.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [SpecFormat; 3] = [SpecFormat::Json, SpecFormat::Toml, SpecFormat::Yaml];

    /// The same document in each format, from one JSON value.
    fn written(format: SpecFormat, value: &serde_json::Value) -> String {
        match format {
            // JSON is YAML.
            SpecFormat::Json | SpecFormat::Yaml => value.to_string(),
            SpecFormat::Toml => toml::to_string(value).unwrap(),
        }
    }

    #[test]
    fn every_format_reads_the_same_spec() {
        let value = serde_json::json!({
            "workload": {"version": "1.0", "command": ["/bin/product", "--x"], "health_path": "/healthz"},
            "size": {"cpu_millis": 100, "memory_mib": 64},
            "environment": {"GREETING": "héllo"},
            "secrets": {"TOKEN": "env:PRODUCT_TOKEN"},
            "host_names": ["acme.example.com"],
        });
        let specs = FORMATS.map(|format| format.read(&written(format, &value)).unwrap());
        assert!(specs.iter().all(|spec| *spec == specs[0]));
        assert_eq!(specs[0].size.memory_mib, 64);
    }

    #[test]
    fn plain_yaml_is_read() {
        let spec = SpecFormat::Yaml.read("workload:\n  version: '2'\n  command: [a, b]\n").unwrap();
        assert_eq!(spec.workload.command, ["a", "b"]);
    }

    #[test]
    fn a_wrong_an_unknown_and_a_missing_field_are_named() {
        for (value, field, problem) in [
            (
                serde_json::json!({"workload": {"version": "1"}, "size": {"cpu_millis": "x", "memory_mib": 1}}),
                "size.cpu_millis",
                "u32",
            ),
            (
                serde_json::json!({"workload": {"version": "1"}, "size": {"cpu_millis": 1, "memory_mib": -1}}),
                "size.memory_mib",
                "u32",
            ),
            (
                serde_json::json!({"workload": {"version": "1"}, "size": {"cpu_millis": 1, "memory_mib": 0}}),
                "size.memory_mib",
                "1 or more",
            ),
            (serde_json::json!({"workload": {"version": "1"}, "colour": "red"}), "colour", "unknown field"),
            (serde_json::json!({"workload": {"version": "1", "prot": 1}}), "workload.prot", "unknown field"),
            (serde_json::json!({"workload": {}}), "workload", "missing field `version`"),
            (
                serde_json::json!({"workload": {"version": "1"}, "host_names": ["Acme"]}),
                "host_names[0]",
                "expected a lower-case DNS name",
            ),
            (
                serde_json::json!({"workload": {"version": "1"}, "secrets": {"A": "hunter2"}}),
                "secrets.A",
                "expected env:NAME",
            ),
        ] {
            for format in FORMATS {
                let error = format.read(&written(format, &value)).unwrap_err();
                assert_eq!(error.field(), field, "{format:?}: {error}");
                assert!(error.problem().contains(problem), "{format:?}: {error}");
                assert!(!error.to_string().contains("hunter2"), "a secret was quoted: {error}");
            }
        }
    }

    #[test]
    fn a_text_that_is_not_the_format_is_refused() {
        for format in FORMATS {
            assert_eq!(format.read("{{{ nope").unwrap_err().field(), "spec", "{format:?}");
        }
        assert!(SpecFormat::Json.read(r#"{"workload": {"version": "1"}} trailing"#).is_err());
    }
}
