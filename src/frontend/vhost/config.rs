//! What the guest is told about the disk: features and the configuration space. Pure.
//!
//! Source: the virtio specification, "Block Device". Everything is little-endian. No field can be
//! written: the cache is always a write-back one, and a guest that does not know how to flush gets
//! its writes durable one by one.

use crate::device::Geometry;
use crate::units::SECTOR_SIZE;
use virtio_bindings::{virtio_blk as blk, virtio_config, virtio_ring};

/// Queues that a device may have.
pub(super) const QUEUES_MAX: u16 = 64;

/// Entries that a ring may have.
pub(super) const QUEUE_SIZE_MAX: u16 = 1024;

/// Data segments of a request.
const SEGMENTS: u32 = 126;

/// Bytes in each of them.
const SEGMENT_BYTES: u32 = 64 << 10;

/// The most data that a request may carry: what fits into its segments, and a little more for
/// those who count otherwise.
pub(super) const DATA_MAX: usize = 8 << 20;

/// Bytes below which the device does not like to be written.
const PHYSICAL_BLOCK: u32 = 4096;

/// Ranges of a discard or write-zeroes request.
pub(super) const RANGES_MAX: u32 = 16;

/// Sectors in each of them: what a 32-bit count of bytes holds, in whole physical blocks.
const RANGE_SECTORS: u32 = (u32::MAX >> 9) & !7;

/// Bytes of the configuration space that a VMM may ask for.
const SPACE: usize = 256;

/// The bit of a feature.
pub(super) const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// What the device can do.
pub(super) fn features(geometry: &Geometry) -> u64 {
    let ring = [
        virtio_config::VIRTIO_F_VERSION_1,
        virtio_config::VIRTIO_F_RING_PACKED,
        virtio_ring::VIRTIO_RING_F_INDIRECT_DESC,
        virtio_ring::VIRTIO_RING_F_EVENT_IDX,
    ];
    let disk = [
        blk::VIRTIO_BLK_F_SIZE_MAX,
        blk::VIRTIO_BLK_F_SEG_MAX,
        blk::VIRTIO_BLK_F_BLK_SIZE,
        blk::VIRTIO_BLK_F_FLUSH,
        blk::VIRTIO_BLK_F_TOPOLOGY,
        blk::VIRTIO_BLK_F_MQ,
    ];
    let access: &[u32] = match geometry.read_only {
        true => &[blk::VIRTIO_BLK_F_RO],
        false => &[blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES],
    };
    ring.iter().chain(&disk).chain(access).fold(0, |all, feature| all | bit(*feature))
}

/// `size` bytes of the configuration space from `offset`; none where it is not as large.
pub(super) fn read(geometry: &Geometry, offset: u32, size: u32) -> Option<Vec<u8>> {
    let (offset, size) = (usize::try_from(offset).ok()?, usize::try_from(size).ok()?);
    let end = offset.checked_add(size).filter(|end| *end <= SPACE)?;
    Some(space(geometry)[offset..end].to_vec())
}

/// `struct virtio_blk_config`, and zeros.
fn space(geometry: &Geometry) -> [u8; SPACE] {
    let block = geometry.block_size.bytes();
    let physical = PHYSICAL_BLOCK.max(block);
    let optimal = geometry.optimal_io / block;
    let mut space = [0; SPACE];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(geometry.size.bytes() / SECTOR_SIZE).to_le_bytes());
    put(8, &SEGMENT_BYTES.to_le_bytes());
    put(12, &SEGMENTS.to_le_bytes());
    put(20, &block.to_le_bytes());
    put(24, &[(physical / block).ilog2() as u8, 0]);
    put(26, &((physical / block) as u16).to_le_bytes());
    put(28, &optimal.to_le_bytes());
    // Write-back.
    put(32, &[1]);
    put(34, &QUEUES_MAX.to_le_bytes());
    for at in [36, 48] {
        put(at, &RANGE_SECTORS.to_le_bytes());
        put(at + 4, &RANGES_MAX.to_le_bytes());
    }
    put(44, &(physical / SECTOR_SIZE as u32).to_le_bytes());
    // Zeroed ranges may lose their allocation.
    put(56, &[1]);
    space
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{BlockSize, SectorCount};

    fn geometry(block_size: BlockSize, read_only: bool) -> Geometry {
        Geometry { size: SectorCount(4096), block_size, optimal_io: 4 << 20, read_only }
    }

    #[test]
    fn the_space_is_laid_out_as_the_specification_says() {
        let geometry = geometry(BlockSize::B512, false);
        let at = |offset, size| read(&geometry, offset, size).unwrap();
        assert_eq!(at(0, 8), 4096u64.to_le_bytes());
        assert_eq!(at(20, 4), 512u32.to_le_bytes());
        assert_eq!(at(24, 4), [3, 0, 8, 0]);
        assert_eq!(at(28, 4), 8192u32.to_le_bytes());
        assert_eq!(at(34, 2), 64u16.to_le_bytes());
        assert_eq!(at(44, 4), 8u32.to_le_bytes());
        assert!((SEGMENTS * SEGMENT_BYTES) as usize <= DATA_MAX);
        assert_eq!(read(&geometry, 0, 256).unwrap().len(), 256);
        for (offset, size) in [(0, 257), (256, 1), (u32::MAX, u32::MAX), (1, u32::MAX)] {
            assert_eq!(read(&geometry, offset, size), None);
        }
    }

    #[test]
    fn features_follow_the_geometry() {
        let (rw, ro) = (
            features(&geometry(BlockSize::B512, false)),
            features(&geometry(BlockSize::B4096, true)),
        );
        let has = |features, feature| features & bit(feature) != 0;
        assert!(has(rw, blk::VIRTIO_BLK_F_DISCARD) && !has(rw, blk::VIRTIO_BLK_F_RO));
        assert!(!has(ro, blk::VIRTIO_BLK_F_DISCARD) && has(ro, blk::VIRTIO_BLK_F_RO));
        assert!(
            !has(rw, blk::VIRTIO_BLK_F_CONFIG_WCE),
            "the cache's mode cannot be lost, as it is one"
        );
        assert!([rw, ro].iter().all(|all| has(*all, virtio_config::VIRTIO_F_RING_PACKED)));
    }
}
