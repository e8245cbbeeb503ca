//! Devices and buffers.

use crate::{
    MTLCommandQueue, MTLCompileOptions, MTLComputePipelineState, MTLFence, MTLFunction, MTLLibrary,
    MTLResidencySet, MTLResidencySetDescriptor, pipeline, stand_in,
};
use block2::DynBlock;
use objc2::{rc::Retained, runtime::ProtocolObject};
use objc2_foundation::{NSError, NSRange, NSString};
use std::{alloc::Layout, any::Any, ffi::c_void, ptr::NonNull, sync::Arc};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MTLResourceOptions(pub usize);

impl MTLResourceOptions {
    pub const StorageModeShared: Self = Self(0);
    pub const StorageModePrivate: Self = Self(2 << 4);
    pub const HazardTrackingModeUntracked: Self = Self(1 << 8);

    fn is_private(self) -> bool {
        self.0 & Self::StorageModePrivate.0 != 0
    }
}

impl std::ops::BitOr for MTLResourceOptions {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Memory of a device.
#[derive(Clone)]
pub(crate) struct Memory {
    pub address: *mut u8,
    pub length: usize,
    private: bool,
    _owner: Arc<dyn Any>,
}

// SAFETY: what runs on the device is ordered by the command queue, and the CPU reads when it has waited for it.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// An allocation that is freed with its last owner.
struct Allocation(*mut u8, Layout);

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `Memory::new`.
        unsafe { std::alloc::dealloc(self.0, self.1) }
    }
}

impl Memory {
    fn new(length: usize, options: MTLResourceOptions) -> Self {
        /// Of every buffer that Metal allocates.
        const ALIGNMENT: usize = 256;
        let layout = Layout::from_size_align(length.max(1), ALIGNMENT).expect("a sane length");
        // SAFETY: the layout has a size. What a new buffer holds is not specified: no numbers.
        let address = unsafe {
            let address = std::alloc::alloc(layout);
            assert!(!address.is_null(), "no memory for a buffer of {length} bytes");
            std::ptr::write_bytes(address, 0xff, length);
            address
        };
        #[allow(clippy::arc_with_non_send_sync)]
        let owner: Arc<dyn Any> = Arc::new(Allocation(address, layout));
        Self { address, length, private: options.is_private(), _owner: owner }
    }
}

pub trait MTLAllocation {}

pub trait MTLResource {
    fn setLabel(&self, label: Option<&NSString>);
}

pub trait MTLBuffer {
    fn contents(&self) -> NonNull<c_void>;
    fn length(&self) -> usize;
    fn didModifyRange(&self, range: NSRange);
}

impl MTLResource for ProtocolObject<dyn MTLBuffer> {
    fn setLabel(&self, _: Option<&NSString>) {}
}

impl MTLBuffer for ProtocolObject<dyn MTLBuffer> {
    fn contents(&self) -> NonNull<c_void> {
        let memory = self.object::<Memory>();
        assert!(!memory.private, "the CPU cannot look into a private buffer");
        NonNull::new(memory.address.cast()).expect("never null")
    }

    fn length(&self) -> usize {
        self.object::<Memory>().length
    }

    fn didModifyRange(&self, _: NSRange) {}
}

/// The only device.
#[derive(Debug)]
pub(crate) struct Device;

pub(crate) fn device() -> Retained<ProtocolObject<dyn MTLDevice>> {
    ProtocolObject::stand_in(Device)
}

pub fn MTLCreateSystemDefaultDevice() -> Option<Retained<ProtocolObject<dyn MTLDevice>>> {
    Some(device())
}

pub fn MTLCopyAllDevices() -> Vec<Retained<ProtocolObject<dyn MTLDevice>>> {
    vec![device()]
}

/// The family of a device.
#[derive(Debug)]
pub struct MTLArchitecture;

impl MTLArchitecture {
    pub fn name(&self) -> Retained<NSString> {
        NSString::from_str("applegpu_g13g")
    }
}

type Made<T> = Result<Retained<ProtocolObject<T>>, Retained<NSError>>;

#[allow(clippy::missing_safety_doc)]
pub trait MTLDevice {
    fn registryID(&self) -> u64;
    fn architecture(&self) -> Retained<MTLArchitecture>;
    fn recommendedMaxWorkingSetSize(&self) -> u64;
    fn currentAllocatedSize(&self) -> usize;
    fn newBufferWithLength_options(
        &self,
        length: usize,
        options: MTLResourceOptions,
    ) -> Option<Retained<ProtocolObject<dyn MTLBuffer>>>;
    unsafe fn newBufferWithBytes_length_options(
        &self,
        pointer: NonNull<c_void>,
        length: usize,
        options: MTLResourceOptions,
    ) -> Option<Retained<ProtocolObject<dyn MTLBuffer>>>;
    unsafe fn newBufferWithBytesNoCopy_length_options_deallocator(
        &self,
        pointer: NonNull<c_void>,
        length: usize,
        options: MTLResourceOptions,
        deallocator: Option<&DynBlock<dyn Fn(NonNull<c_void>, usize)>>,
    ) -> Option<Retained<ProtocolObject<dyn MTLBuffer>>>;
    fn newLibraryWithSource_options_error(
        &self,
        source: &NSString,
        options: Option<&MTLCompileOptions>,
    ) -> Made<dyn MTLLibrary>;
    fn newComputePipelineStateWithFunction_error(
        &self,
        function: &ProtocolObject<dyn MTLFunction>,
    ) -> Made<dyn MTLComputePipelineState>;
    fn newCommandQueue(&self) -> Option<Retained<ProtocolObject<dyn MTLCommandQueue>>>;
    fn newFence(&self) -> Option<Retained<ProtocolObject<dyn MTLFence>>>;
    fn newResidencySetWithDescriptor_error(
        &self,
        descriptor: &MTLResidencySetDescriptor,
    ) -> Made<dyn MTLResidencySet>;
}

impl MTLDevice for ProtocolObject<dyn MTLDevice> {
    fn registryID(&self) -> u64 {
        1
    }

    fn architecture(&self) -> Retained<MTLArchitecture> {
        Retained::stand_in(MTLArchitecture)
    }

    fn recommendedMaxWorkingSetSize(&self) -> u64 {
        8 << 30
    }

    fn currentAllocatedSize(&self) -> usize {
        0
    }

    fn newBufferWithLength_options(
        &self,
        length: usize,
        options: MTLResourceOptions,
    ) -> Option<Retained<ProtocolObject<dyn MTLBuffer>>> {
        Some(ProtocolObject::stand_in(Memory::new(length, options)))
    }

    unsafe fn newBufferWithBytes_length_options(
        &self,
        pointer: NonNull<c_void>,
        length: usize,
        options: MTLResourceOptions,
    ) -> Option<Retained<ProtocolObject<dyn MTLBuffer>>> {
        let memory = Memory::new(length, options);
        // SAFETY: the caller vouches for so many bytes.
        unsafe { std::ptr::copy_nonoverlapping(pointer.as_ptr().cast(), memory.address, length) };
        stand_in::copied(length);
        Some(ProtocolObject::stand_in(memory))
    }

    unsafe fn newBufferWithBytesNoCopy_length_options_deallocator(
        &self,
        pointer: NonNull<c_void>,
        length: usize,
        options: MTLResourceOptions,
        deallocator: Option<&DynBlock<dyn Fn(NonNull<c_void>, usize)>>,
    ) -> Option<Retained<ProtocolObject<dyn MTLBuffer>>> {
        /// What every system's pages are a multiple of.
        const PAGE: usize = 4096;
        let (address, private) = (pointer.as_ptr().cast::<u8>(), options.is_private());
        if !address.addr().is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) || private {
            return None;
        }
        #[allow(clippy::arc_with_non_send_sync)]
        let owner: Arc<dyn Any> =
            deallocator.map_or_else(|| Arc::new(()) as Arc<dyn Any>, |block| block.held());
        Some(ProtocolObject::stand_in(Memory { address, length, private, _owner: owner }))
    }

    fn newLibraryWithSource_options_error(
        &self,
        source: &NSString,
        _: Option<&MTLCompileOptions>,
    ) -> Made<dyn MTLLibrary> {
        pipeline::library(&source.to_string()).map_err(NSError::stand_in)
    }

    fn newComputePipelineStateWithFunction_error(
        &self,
        function: &ProtocolObject<dyn MTLFunction>,
    ) -> Made<dyn MTLComputePipelineState> {
        Ok(pipeline::pipeline(function))
    }

    fn newCommandQueue(&self) -> Option<Retained<ProtocolObject<dyn MTLCommandQueue>>> {
        Some(ProtocolObject::stand_in(()))
    }

    fn newFence(&self) -> Option<Retained<ProtocolObject<dyn MTLFence>>> {
        Some(ProtocolObject::stand_in(()))
    }

    fn newResidencySetWithDescriptor_error(
        &self,
        _: &MTLResidencySetDescriptor,
    ) -> Made<dyn MTLResidencySet> {
        Ok(ProtocolObject::stand_in(()))
    }
}
