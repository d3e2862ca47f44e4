//! 3. Specs at the limits of what is legal.

use std::sync::Arc;

use provisioner_core::types::{
    ControlPlaneId, DataId, DataSource, Generation, HostName, Incarnation, InstanceId, LabelKey, LabelValue, Target,
    TenantId, VariableName,
};

use crate::{
    Subject, Verb,
    failure::{During, Outcome, ensure},
    subject::random,
};

/// Values that are legal, and that shells, quotes and encodings spoil.
fn hostile() -> Vec<(String, String)> {
    let mut values: Vec<(String, String)> = [
        ("EMPTY", ""),
        ("SPACES", "  leading, trailing and\ttabs  "),
        ("NEWLINES", "first\nsecond\r\n\nlast\n"),
        ("QUOTES", "'single' \"double\" `back` \\ \\n"),
        ("EQUALS", "=a=b=="),
        ("SHELL", "$HOME ${HOME} $(id) `id` ; & | > < * ? ~ # !"),
        ("MARKUP", "{\"a\": [1, 2]} <b>&amp;</b> %s %n {{x}} - : ,"),
        ("UNICODE", "Grüße, 世界, 🦀, e\u{301}, \u{200b}\u{feff}\u{202e}\u{ffff}"),
        ("CONTROL", "\u{1}\u{7}\u{1b}[31m\u{7f}\u{85}"),
        ("_", "a name of one character"),
        ("lower_Case_9", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    values.push(("LONG".into(), "ü".repeat(16 * 1024)));
    values.push(("N".repeat(128), "a name of the longest kind".into()));
    values
}

/// The product sees its environment byte for byte, as made, as updated, and after a wake.
pub(super) async fn hostile_but_legal_values_arrive_byte_for_byte(subject: Subject) -> Outcome {
    let mut target = subject.target();
    let mut spec = (*target.spec).clone();
    let variables = hostile();
    for (name, value) in &variables {
        spec.environment.insert(VariableName::new(name).expect("a name"), value.clone());
    }
    subject.backend.validate(&spec, None).during("validate")?;
    target.spec = Arc::new(spec);
    for verbs in [&[Verb::Create][..], &[Verb::Zero, Verb::Resume]] {
        for verb in verbs {
            subject.reach(*verb, &target).await.during(verb)?;
        }
        let environment = subject.outsider().environment(&subject.owner, &target).await?;
        for (name, value) in &variables {
            let has = environment.get(name);
            let shown: String = value.chars().take(60).collect();
            ensure!(has == Some(value), "the product has {name} = {has:?}, expected {shown:?}");
        }
    }
    Ok(())
}

/// Every name and number at its longest and largest is taken, told back and removed.
pub(super) async fn names_and_sizes_at_their_limits_are_taken(subject: Subject) -> Outcome {
    let longest = subject.named(ControlPlaneId::new(limit("plane", 40)).expect("a DNS label"));
    let max = subject.backend.capabilities().size_max;
    let mut spec = (subject.profile.spec)(&"9".repeat(128));
    spec.size.cpu_millis = max.cpu_millis;
    spec.size.memory_mib = max.memory_mib;
    spec.data.size_mib = max.data_mib;
    let host = format!("{}.{}.{}.example", "a".repeat(63), "b".repeat(63), "c".repeat(63));
    spec.host_names.insert(HostName::new(host).expect("a host name"));
    let label = |text: &str| format!("{text}{}", "x".repeat(63 - text.len()));
    spec.labels.insert(
        LabelKey::new(label("key.with-all_signs")).expect("a key"),
        LabelValue::new(label("value")).expect("a value"),
    );
    spec.labels.insert(LabelKey::new("empty").expect("a key"), LabelValue::new("").expect("a value"));
    longest.backend.validate(&spec, None).during("validate")?;
    let target = Target {
        id: InstanceId::new(limit("instance", 40)).expect("a DNS label"),
        tenant: TenantId::new("Ω".repeat(128)).expect("a name"),
        incarnation: Incarnation::new(u32::MAX, random() | 1 << 127),
        generation: Generation(u64::MAX),
        spec: Arc::new(spec),
        data: DataSource::Fresh(DataId::from_random(random() | 1 << 127)),
    };
    longest.reach(Verb::Create, &target).await?;
    longest.expect_things(&target, 1).await?;
    longest.reach(Verb::Zero, &target).await?;
    longest.reach(Verb::Resume, &target).await?;
    longest.reach(Verb::DESTROY, &target).await?;
    longest.expect_things(&target, 0).await?;
    // And the shortest.
    let shortest = subject.target();
    let id = InstanceId::new("a").expect("a DNS label");
    let shortest = Target { id, incarnation: Incarnation::new(0, random()), ..shortest };
    subject.reach(Verb::Create, &shortest).await.during("a name of one character")?;
    subject.expect_things(&shortest, 1).await
}

/// A DNS label of this length that nobody else has.
fn limit(beginning: &str, length: usize) -> String {
    let text = format!("{beginning}-{:032x}", random());
    let filled = format!("{text:x<length$}");
    filled.chars().take(length).collect()
}
