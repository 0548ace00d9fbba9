//! What the block layer is told about the device. Pure.
//!
//! Every attribute is chosen here, none is left to a default of the driver: the block layer sends
//! only the kinds of request that are announced. Source: `struct ublk_params` of the Linux header
//! `linux/ublk_cmd.h`, and the limits of `block/blk-settings.c`.

use super::options::UblkOptions;
use crate::device::Geometry;
use crate::units::SECTOR_SHIFT;
use libublk::sys;

/// Bytes below which the device does not like to be written: partial pages cost a read.
const IO_MIN: u32 = 4096;

/// Bytes in the unit of discards.
const DISCARD_GRANULARITY: u32 = 4096;

/// Sectors in the largest discard or write-zeroes request. A request's length is a 32-bit count
/// of bytes inside the kernel, so this is all that fits, in whole discard units.
const MAX_DISCARD_SECTORS: u32 =
    (u32::MAX >> SECTOR_SHIFT) & !((DISCARD_GRANULARITY >> SECTOR_SHIFT) - 1);

/// The parameters for a device of this shape.
///
/// Physical blocks are 4096 bytes whatever the logical block size, so that file systems align
/// themselves; the optimal I/O size is rounded down to a power of two, which is all that the
/// driver can be told.
pub(super) fn params(geometry: &Geometry, options: &UblkOptions) -> sys::ublk_params {
    let mut attrs = sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA;
    if geometry.read_only {
        attrs |= sys::UBLK_ATTR_READ_ONLY;
    }
    let optimal = geometry.optimal_io.max(IO_MIN);
    sys::ublk_params {
        len: size_of::<sys::ublk_params>() as u32,
        types: sys::UBLK_PARAM_TYPE_BASIC | sys::UBLK_PARAM_TYPE_DISCARD,
        basic: sys::ublk_param_basic {
            attrs,
            logical_bs_shift: geometry.block_size.bytes().ilog2() as u8,
            physical_bs_shift: IO_MIN.ilog2() as u8,
            io_opt_shift: optimal.ilog2() as u8,
            io_min_shift: IO_MIN.ilog2() as u8,
            max_sectors: options.max_io >> SECTOR_SHIFT,
            chunk_sectors: 0,
            dev_sectors: geometry.size.0,
            virt_boundary_mask: 0,
        },
        discard: sys::ublk_param_discard {
            discard_alignment: 0,
            discard_granularity: DISCARD_GRANULARITY,
            max_discard_sectors: MAX_DISCARD_SECTORS,
            max_write_zeroes_sectors: MAX_DISCARD_SECTORS,
            max_discard_segments: 1,
            reserved0: 0,
        },
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{BlockSize, SectorCount};

    fn geometry() -> Geometry {
        Geometry {
            size: SectorCount(2048),
            block_size: BlockSize::B512,
            optimal_io: 4 << 20,
            read_only: false,
        }
    }

    fn told(geometry: Geometry) -> sys::ublk_params {
        params(&geometry, &UblkOptions::new("v"))
    }

    #[test]
    fn a_writable_volume() {
        let p = told(geometry());
        assert_eq!(p.len as usize, size_of::<sys::ublk_params>());
        assert_eq!(p.types, sys::UBLK_PARAM_TYPE_BASIC | sys::UBLK_PARAM_TYPE_DISCARD);
        assert_eq!(p.basic.attrs, sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA);
        assert_eq!((p.basic.logical_bs_shift, p.basic.physical_bs_shift), (9, 12));
        assert_eq!((p.basic.io_min_shift, p.basic.io_opt_shift), (12, 22));
        assert_eq!((p.basic.max_sectors, p.basic.chunk_sectors), (1024, 0));
        assert_eq!((p.basic.dev_sectors, p.basic.virt_boundary_mask), (2048, 0));
        assert_eq!((p.discard.discard_alignment, p.discard.discard_granularity), (0, 4096));
        assert_eq!(p.discard.max_discard_segments, 1);
    }

    #[test]
    fn a_tebibyte_is_discarded_in_few_requests() {
        let p = told(geometry());
        for sectors in [p.discard.max_discard_sectors, p.discard.max_write_zeroes_sectors] {
            assert!((1u64 << 31).div_ceil(u64::from(sectors)) <= 257);
            assert!(u64::from(sectors) << 9 <= u64::from(u32::MAX));
            assert_eq!(sectors % 8, 0);
        }
    }

    #[test]
    fn read_only_and_block_size_follow_the_geometry() {
        let p = told(Geometry { read_only: true, block_size: BlockSize::B4096, ..geometry() });
        assert_ne!(p.basic.attrs & sys::UBLK_ATTR_READ_ONLY, 0);
        assert_eq!(p.basic.logical_bs_shift, 12);
    }

    #[test]
    fn odd_optimal_sizes_are_rounded_to_what_can_be_told() {
        let shift = |optimal_io| told(Geometry { optimal_io, ..geometry() }).basic.io_opt_shift;
        assert_eq!(shift(0), 12);
        assert_eq!(shift(512), 12);
        assert_eq!(shift(3 << 20), 21);
        assert_eq!(shift(u32::MAX), 31);
    }
}
