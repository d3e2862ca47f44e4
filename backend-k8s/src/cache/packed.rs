//! What is known of all homes, packed: of thousands of instances few are in motion, and only those are looked at often.

use std::collections::BTreeMap;

use super::Space;
use crate::names;

/// Whatever is packed has this before it, so that what it repeats takes no room: routes and endpoints name their home.
fn preamble(home: &str) -> Vec<u8> {
    format!("http://{home}.svc").into_bytes()
}

/// What is known of each home, by the number in its name.
#[derive(Debug, Default)]
pub(super) struct Spaces(BTreeMap<u128, Box<[u8]>>);

impl Spaces {
    pub(super) fn get(&self, home: &str) -> Option<Space> {
        let packed = self.0.get(&names::number(home)?)?;
        Some(unpack(packed, home))
    }

    /// Changes what is known of a home. It is forgotten when nothing is known of it any more.
    ///
    /// # Panics
    /// When the name is none of [`names::home`].
    pub(super) fn change<T>(&mut self, home: &str, change: impl FnOnce(&mut Space) -> T) -> T {
        let number = names::number(home).expect("it was looked at whether it is one of ours");
        let mut space = self.0.get(&number).map(|packed| unpack(packed, home)).unwrap_or_default();
        let done = change(&mut space);
        if space.is_empty() {
            self.0.remove(&number);
        } else {
            self.0.insert(number, pack(&space, home));
        }
        done
    }

    /// What follows a home, in the order of their names.
    pub(super) fn after(&self, home: Option<&str>) -> impl Iterator<Item = (String, Space)> {
        let from = home.and_then(names::number).map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.0.range((from, std::ops::Bound::Unbounded)).map(|(number, packed)| {
            let home = names::numbered(*number);
            let space = unpack(packed, &home);
            (home, space)
        })
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many bytes all of it takes, without what the allocator adds.
    pub(super) fn bytes(&self) -> usize {
        self.0.values().map(|packed| size_of::<(u128, Box<[u8]>)>() + packed.len()).sum()
    }
}

fn pack(space: &Space, home: &str) -> Box<[u8]> {
    let plain = postcard::to_allocvec(space).expect("nothing in it fails to be written");
    let mut packed = lz4_flex::block::compress_with_dict(&plain, &preamble(home));
    let length = u32::try_from(plain.len()).expect("objects of a cluster are small");
    packed.extend(length.to_be_bytes());
    packed.into()
}

fn unpack(packed: &[u8], home: &str) -> Space {
    let (packed, length) = packed.split_last_chunk().expect("it was packed here");
    let length = u32::from_be_bytes(*length) as usize;
    let plain = lz4_flex::block::decompress_with_dict(packed, length, &preamble(home)).expect("it was packed here");
    postcard::from_bytes(&plain).expect("it was packed here")
}

/// Identifiers in half the room: those of 32 hexadecimal digits, and the cluster's own, which are UUIDs:
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#uids>.
pub(super) mod identifier {
    use std::fmt::Display;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[derive(Serialize, Deserialize)]
    enum Packed {
        Digits([u8; 16]),
        Uuid([u8; 16]),
        Text(String),
    }

    impl Packed {
        fn of(text: String) -> Self {
            let digits: String = text.chars().filter(|c| *c != '-').collect();
            let Ok(number) = u128::from_str_radix(&digits, 16) else { return Self::Text(text) };
            // The one that reads back as it was.
            let bytes = number.to_be_bytes();
            let exact = [Self::Digits(bytes), Self::Uuid(bytes)].into_iter().find(|packed| packed.text() == text);
            exact.unwrap_or(Self::Text(text))
        }

        fn text(&self) -> String {
            match self {
                Self::Digits(bytes) => format!("{:032x}", u128::from_be_bytes(*bytes)),
                Self::Uuid(bytes) => {
                    let mut text = format!("{:032x}", u128::from_be_bytes(*bytes));
                    for at in [20, 16, 12, 8] {
                        text.insert(at, '-');
                    }
                    text
                }
                Self::Text(text) => text.clone(),
            }
        }
    }

    pub(in crate::cache) fn serialize<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
        Packed::of(value.to_string()).serialize(serializer)
    }

    pub(in crate::cache) fn deserialize<'de, T: TryFrom<String, Error: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        let text = Packed::deserialize(deserializer)?.text();
        T::try_from(text).map_err(D::Error::custom)
    }
}

/// An incarnation as what it is made of, not as a text.
pub(super) mod incarnation {
    use provisioner_core::types::Incarnation;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in crate::cache) fn serialize<S: Serializer>(
        incarnation: &Incarnation,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        (incarnation.number(), incarnation.nonce().to_be_bytes()).serialize(serializer)
    }

    pub(in crate::cache) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Incarnation, D::Error> {
        let (number, nonce) = <(u32, [u8; 16])>::deserialize(deserializer)?;
        Ok(Incarnation::new(number, u128::from_be_bytes(nonce)))
    }
}

#[cfg(test)]
mod tests {
    use provisioner_core::types::{DataId, Generation, Incarnation, InstanceId};

    use super::*;
    use crate::cache::{
        HomeDigest, Intended, Kind, PodDigest, SetDigest,
        digest::ClaimDigest,
        space::{PartDigest, Served},
    };

    const UID: &str = "0b9ad2b2-5c0f-4d62-8a0e-0f3f6c1c2a11";

    /// What is known of an instance that sleeps.
    fn dormant(home: &str) -> Space {
        let incarnation = Incarnation::new(3, 0x9ad2_b25c_0f4d_628a_0e0f_3f6c_1c2a_1177);
        let name: Box<str> = "customer-0042-6b1f0a9d3c".into();
        let set = SetDigest {
            uid: UID.into(),
            name: name.clone(),
            incarnation,
            generation: Generation(7),
            intended: Intended::Zero,
            replicas: 0,
            pods: 0,
            unseen_since: None,
            revision: format!("{name}-7d9c5b6f4").into(),
            is_ending: false,
            held: None,
            edits: 12,
            is_foreign: false,
            has_other_marks: false,
            endpoint: format!("http://{name}.{home}.svc:80").into(),
            parts: 5,
            routes: 1,
        };
        let part = |kind, version| PartDigest {
            kind,
            name: name.clone(),
            incarnation,
            version,
            generation: Generation(7),
            is_foreign: false,
            held: None,
        };
        Space {
            home: Some(HomeDigest {
                uid: "6f1ed002-ab5f-4b43-9c52-0d2f1a7f7d10".into(),
                instance: InstanceId::new("customer-0042").unwrap(),
                incarnation,
                data: DataId::from_random(0x6f1e_d002_ab5f_4b43_9c52_0d2f_1a7f_7d10),
                tenant: "9f86d081884c7d65".into(),
                released: None,
                is_foreign: false,
                is_ending: false,
                blocked: None,
            }),
            claim: Some(ClaimDigest {
                is_bound: true,
                is_ending: false,
                is_lost: false,
                is_foreign: false,
                held: None,
            }),
            sets: vec![set],
            parts: Kind::PARTS.into_iter().chain([Kind::Ingress]).zip(1_234_567..).map(|(k, v)| part(k, v)).collect(),
            ..Space::default()
        }
    }

    fn known(home: &str, space: &Space) -> Spaces {
        let mut spaces = Spaces::default();
        spaces.change(home, |changed| changed.clone_from(space));
        spaces
    }

    #[test]
    fn what_was_packed_is_as_it_was() {
        let home = names::numbered(77);
        let mut space = dormant(&home);
        assert_eq!(known(&home, &space).get(&home).unwrap(), space);
        space.pods.push(PodDigest {
            // As no cluster calls it, and yet.
            uid: "ABC-7".into(),
            name: "customer-0042-6b1f0a9d3c-0".into(),
            incarnation: Incarnation::new(1, 1),
            revision: "".into(),
            is_ready: true,
            is_ending: false,
            made_at: 1_790_000_000,
            is_starting: false,
            held: Some("a, b".into()),
            trouble: None,
        });
        space.served.push(Served { slice: "x".into(), pod: "6F1ED002-AB5F-4B43-9C52-0D2F1A7F7D10".into() });
        let spaces = known(&home, &space);
        assert_eq!(spaces.get(&home).unwrap(), space);
        assert_eq!(spaces.after(None).collect::<Vec<_>>(), [(home.clone(), space)]);
        assert_eq!(spaces.after(Some(&home)).count(), 0);
        assert!(spaces.get(&names::numbered(78)).is_none());
    }

    #[test]
    fn a_dormant_instance_takes_under_300_bytes_and_a_running_one_under_350() {
        let home = names::numbered(0x6f1e_d002_ab5f_4b43_9c52_0d2f_1a7f_7d10);
        let mut space = dormant(&home);
        // As where it lives is noted beside it.
        let weigh = |space: &Space| known(&home, space).bytes() + size_of::<(u128, u128)>();
        let asleep = weigh(&space);
        let uid = "c1b0a8f2-53a1-4d0e-8a6f-2f8d1f0b7c44";
        space.pods.push(PodDigest {
            uid: uid.into(),
            name: "customer-0042-6b1f0a9d3c-0".into(),
            incarnation: space.sets[0].incarnation,
            revision: space.sets[0].revision.clone(),
            is_ready: true,
            is_ending: false,
            made_at: 1_790_000_000,
            is_starting: false,
            held: None,
            trouble: None,
        });
        space.served.push(Served { slice: "customer-0042-6b1f0a9d3c-x7k2p".into(), pod: uid.into() });
        let awake = weigh(&space);
        println!("asleep: {asleep} bytes, awake: {awake} bytes");
        assert!(asleep < 300 && awake < 350, "{asleep} and {awake} bytes");
    }

    #[test]
    fn a_home_of_which_nothing_is_known_any_more_is_forgotten() {
        let home = names::numbered(5);
        let mut spaces = known(&home, &dormant(&home));
        spaces.change(&home, |space| *space = Space::default());
        assert_eq!((spaces.len(), spaces.bytes()), (0, 0));
    }
}
