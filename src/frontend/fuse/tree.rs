//! Inode numbers, and what they stand for.
//!
//! Pure. A number is given out once: what it stands for never changes, and when the kernel has
//! forgotten it, it is gone.

use super::catalogue::ImageName;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The number of the directory itself.
pub(super) const ROOT: u64 = 1;

/// The directory of snapshots, in the root.
pub(super) const SNAPSHOTS: &str = ".snapshots";

/// How the name of an image's file ends.
pub(super) const RAW: &str = ".raw";

/// What an inode number stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Node {
    /// The directory that is mounted.
    Root,
    /// The directory of the directories of snapshots.
    Snapshots,
    /// The snapshots of this volume.
    SnapshotsOf(String),
    /// A file.
    Image {
        name: ImageName,
        /// Which of all that ever had that name.
        id: [u8; 16],
    },
}

/// What a name in a directory may stand for; whether it is there is for others to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Child {
    Snapshots,
    SnapshotsOf(String),
    Image(ImageName),
}

impl Node {
    /// What `name` may stand for in this directory.
    pub(super) fn child(&self, name: &str) -> Option<Child> {
        match self {
            Node::Root if name == SNAPSHOTS => Some(Child::Snapshots),
            Node::Root => {
                let volume = name.strip_suffix(RAW)?.to_owned();
                Some(Child::Image(ImageName { volume, snapshot: None }))
            }
            Node::Snapshots => Some(Child::SnapshotsOf(name.to_owned())),
            Node::SnapshotsOf(volume) => {
                let (volume, snapshot) = (volume.clone(), name.strip_suffix(RAW)?.to_owned());
                Some(Child::Image(ImageName { volume, snapshot: Some(snapshot) }))
            }
            Node::Image { .. } => None,
        }
    }
}

struct Known {
    node: Node,
    /// How often the kernel was told of it.
    lookups: u64,
}

/// The numbers that the kernel knows.
pub(super) struct Tree {
    known: HashMap<u64, Known>,
    numbers: HashMap<Node, u64>,
    next: u64,
}

impl Tree {
    pub(super) fn new() -> Tree {
        Tree { known: HashMap::new(), numbers: HashMap::new(), next: ROOT + 1 }
    }

    /// The number of `node`, which the kernel is told once more.
    pub(super) fn tell(&mut self, node: &Node) -> u64 {
        if *node == Node::Root {
            return ROOT;
        }
        let number = match self.numbers.entry(node.clone()) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let number = self.next;
                self.next += 1;
                self.known.insert(number, Known { node: node.clone(), lookups: 0 });
                *new.insert(number)
            }
        };
        if let Some(known) = self.known.get_mut(&number) {
            known.lookups += 1;
        }
        number
    }

    /// What a number stands for.
    pub(super) fn node(&self, number: u64) -> Option<Node> {
        match number {
            ROOT => Some(Node::Root),
            number => self.known.get(&number).map(|known| known.node.clone()),
        }
    }

    /// The kernel forgets a number as often as it was told.
    pub(super) fn forget(&mut self, number: u64, lookups: u64) {
        let Entry::Occupied(mut known) = self.known.entry(number) else { return };
        let left = known.get().lookups.saturating_sub(lookups);
        known.get_mut().lookups = left;
        if left == 0 {
            self.numbers.remove(&known.remove().node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(volume: &str, snapshot: Option<&str>) -> ImageName {
        ImageName { volume: volume.into(), snapshot: snapshot.map(str::to_owned) }
    }

    #[test]
    fn names() {
        assert_eq!(Node::Root.child(".snapshots"), Some(Child::Snapshots));
        assert_eq!(Node::Root.child("a.raw.raw"), Some(Child::Image(image("a.raw", None))));
        assert_eq!(Node::Root.child("a"), None);
        assert_eq!(Node::Snapshots.child("a"), Some(Child::SnapshotsOf("a".into())));
        let of = Node::SnapshotsOf("a".into());
        assert_eq!(of.child("s.raw"), Some(Child::Image(image("a", Some("s")))));
        assert_eq!(of.child("s"), None);
        assert_eq!(Node::Image { name: image("a", None), id: [0; 16] }.child("b.raw"), None);
    }

    #[test]
    fn a_number_stands_for_one_thing_until_it_is_forgotten() {
        let mut tree = Tree::new();
        let node = |id| Node::Image { name: image("a", None), id: [id; 16] };
        let first = tree.tell(&node(1));
        assert_eq!(tree.tell(&node(1)), first);
        let second = tree.tell(&node(2));
        assert_ne!(first, second, "the same name, another image");
        tree.forget(first, 1);
        assert_eq!(tree.node(first), Some(node(1)));
        tree.forget(first, 1);
        assert_eq!(tree.node(first), None);
        tree.forget(first, 1);
        assert_eq!(tree.node(second), Some(node(2)));
        assert_ne!(tree.tell(&node(1)), first, "a number is given out once");
        tree.forget(ROOT, 9);
        assert_eq!(tree.node(ROOT), Some(Node::Root));
    }
}
