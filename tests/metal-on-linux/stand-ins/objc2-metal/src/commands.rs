//! Queues, command buffers and encoders.

use crate::{
    MTLAllocation, MTLBuffer, MTLComputePipelineState, MTLDevice, memory, memory::Memory, pipeline::Function,
    stand_in,
};
use block2::DynBlock;
use objc2::{rc::Retained, runtime::ProtocolObject};
use objc2_foundation::{NSError, NSRange, NSString};
use shader_runner::{Launch, Order};
use std::{
    collections::HashSet,
    ffi::c_void,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MTLSize {
    pub width: usize,
    pub height: usize,
    pub depth: usize,
}

impl MTLSize {
    fn array(self) -> [usize; 3] {
        [self.width, self.height, self.depth]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MTLCommandBufferStatus {
    NotEnqueued,
    Enqueued,
    Committed,
    Scheduled,
    Completed,
    Error,
}

#[derive(Debug, Clone, Copy)]
pub enum MTLDispatchType {
    Serial,
    Concurrent,
}

#[derive(Debug, Clone, Copy)]
pub enum MTLBarrierScope {
    Buffers,
}

pub trait MTLFence {}

#[derive(Debug)]
pub struct MTLResidencySetDescriptor;

impl MTLResidencySetDescriptor {
    #[allow(clippy::new_ret_no_self)]
    pub fn new() -> Retained<Self> {
        Retained::stand_in(Self)
    }
}

pub trait MTLResidencySet {
    fn requestResidency(&self);
    fn addAllocation(&self, allocation: &ProtocolObject<dyn MTLAllocation>);
    fn removeAllocation(&self, allocation: &ProtocolObject<dyn MTLAllocation>);
    fn commit(&self);
}

impl MTLResidencySet for ProtocolObject<dyn MTLResidencySet> {
    fn requestResidency(&self) {}

    fn addAllocation(&self, _: &ProtocolObject<dyn MTLAllocation>) {}

    fn removeAllocation(&self, _: &ProtocolObject<dyn MTLAllocation>) {}

    fn commit(&self) {}
}

pub trait MTLCommandQueue {
    fn commandBuffer(&self) -> Option<Retained<ProtocolObject<dyn MTLCommandBuffer>>>;
    fn addResidencySet(&self, set: &ProtocolObject<dyn MTLResidencySet>);
    fn device(&self) -> Retained<ProtocolObject<dyn MTLDevice>>;
}

impl MTLCommandQueue for ProtocolObject<dyn MTLCommandQueue> {
    fn commandBuffer(&self) -> Option<Retained<ProtocolObject<dyn MTLCommandBuffer>>> {
        Some(ProtocolObject::stand_in(Recorded::default()))
    }

    fn addResidencySet(&self, _: &ProtocolObject<dyn MTLResidencySet>) {}

    fn device(&self) -> Retained<ProtocolObject<dyn MTLDevice>> {
        memory::device()
    }
}

/// What an argument of a kernel is bound to.
#[derive(Clone, Default)]
enum Bound {
    #[default]
    Nothing,
    Bytes(Vec<u64>, usize),
    Buffer(Memory, usize),
}

/// A command of a buffer, in the order of encoding.
enum Command {
    Dispatch {
        function: Function,
        bound: Vec<Bound>,
        shared: Vec<usize>,
        groups: [usize; 3],
        threads: [usize; 3],
    },
    Copy {
        from: Memory,
        start: usize,
        to: Memory,
        at: usize,
        length: usize,
    },
    Fill {
        memory: Memory,
        range: NSRange,
        value: u8,
    },
}

#[derive(Default)]
struct State {
    commands: Vec<Command>,
    done: bool,
    waited: bool,
    error: Option<String>,
}

/// A command buffer.
#[derive(Clone, Default)]
struct Recorded(Arc<Mutex<State>>);

impl Recorded {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[allow(clippy::missing_safety_doc)]
pub trait MTLCommandBuffer {
    fn device(&self) -> Retained<ProtocolObject<dyn MTLDevice>>;
    fn computeCommandEncoderWithDispatchType(
        &self,
        kind: MTLDispatchType,
    ) -> Option<Retained<ProtocolObject<dyn MTLComputeCommandEncoder>>>;
    fn blitCommandEncoder(&self) -> Option<Retained<ProtocolObject<dyn MTLBlitCommandEncoder>>>;
    fn commit(&self);
    fn enqueue(&self);
    fn status(&self) -> MTLCommandBufferStatus;
    fn error(&self) -> Option<Retained<NSError>>;
    fn waitUntilCompleted(&self);
    fn setLabel(&self, label: Option<&NSString>);
    unsafe fn addCompletedHandler(
        &self,
        block: *mut DynBlock<dyn Fn(NonNull<ProtocolObject<dyn MTLCommandBuffer>>)>,
    );
}

impl MTLCommandBuffer for ProtocolObject<dyn MTLCommandBuffer> {
    fn device(&self) -> Retained<ProtocolObject<dyn MTLDevice>> {
        memory::device()
    }

    fn computeCommandEncoderWithDispatchType(
        &self,
        _: MTLDispatchType,
    ) -> Option<Retained<ProtocolObject<dyn MTLComputeCommandEncoder>>> {
        let buffer = self.object::<Recorded>().clone();
        Some(ProtocolObject::stand_in(Encoder { buffer, state: Mutex::default() }))
    }

    fn blitCommandEncoder(&self) -> Option<Retained<ProtocolObject<dyn MTLBlitCommandEncoder>>> {
        Some(ProtocolObject::stand_in(self.object::<Recorded>().clone()))
    }

    fn commit(&self) {
        let mut state = self.object::<Recorded>().state();
        assert!(!state.done, "a command buffer is committed once");
        for command in std::mem::take(&mut state.commands) {
            if state.error.is_none() {
                state.error = run(command).err();
            }
        }
        state.done = true;
    }

    fn enqueue(&self) {}

    fn status(&self) -> MTLCommandBufferStatus {
        let state = self.object::<Recorded>().state();
        match (state.done, state.waited, &state.error) {
            (false, ..) => MTLCommandBufferStatus::NotEnqueued,
            // A device takes its time, so that whoever needs the result has to wait for it.
            (true, false, _) => MTLCommandBufferStatus::Committed,
            (true, true, None) => MTLCommandBufferStatus::Completed,
            (true, true, Some(_)) => MTLCommandBufferStatus::Error,
        }
    }

    fn error(&self) -> Option<Retained<NSError>> {
        self.object::<Recorded>().state().error.clone().map(NSError::stand_in)
    }

    fn waitUntilCompleted(&self) {
        self.object::<Recorded>().state().waited = true;
        stand_in::waited();
    }

    fn setLabel(&self, _: Option<&NSString>) {}

    unsafe fn addCompletedHandler(
        &self,
        _: *mut DynBlock<dyn Fn(NonNull<ProtocolObject<dyn MTLCommandBuffer>>)>,
    ) {
        // Tidies up what Candle keeps for fences, which are not modelled.
    }
}

fn run(command: Command) -> Result<(), String> {
    match command {
        Command::Copy { from, start, to, at, length } => {
            // SAFETY: the ranges were checked when the command was encoded, and the buffers are held.
            unsafe { std::ptr::copy(from.address.add(start), to.address.add(at), length) };
        }
        Command::Fill { memory, range, value } => {
            // SAFETY: as above.
            unsafe { std::ptr::write_bytes(memory.address.add(range.location), value, range.length) };
        }
        Command::Dispatch { function, bound, shared, groups, threads } => {
            let name = function.name().to_string();
            let buffers = bound.iter().map(|bound| match bound {
                Bound::Nothing => (std::ptr::null_mut(), 0),
                Bound::Bytes(words, bytes) => (words.as_ptr().cast_mut().cast(), *bytes),
                // SAFETY: the offset was checked when it was bound.
                Bound::Buffer(memory, offset) => {
                    (unsafe { memory.address.add(*offset) }, memory.length - offset)
                }
            });
            let buffers: Vec<(*mut u8, usize)> = buffers.collect();
            match &function {
                // SAFETY: the arguments are those that Candle binds for its function of this name.
                Function::Candle(function) => unsafe { (function.run)(&buffers) },
                Function::Own { library, .. } => {
                    /// Threadgroups that are worth a thread of their own.
                    const SHARE: usize = 16;
                    let most = std::thread::available_parallelism().map_or(1, |n| n.get());
                    let workers = most.min(groups.iter().product::<usize>().div_ceil(SHARE));
                    let launch = Launch {
                        kernel: &name,
                        groups,
                        threads,
                        shared: &shared,
                        buffers: &buffers,
                        order: Order::Forward,
                        workers,
                    };
                    // SAFETY: the launches' arguments are tested on traced libraries, and commands run one by one.
                    unsafe { library.run(&launch) }.map_err(|fault| fault.to_string())?;
                }
            }
        }
    }
    Ok(())
}

/// What a compute encoder has been told for the next dispatch, and what dispatches since the last barrier did.
#[derive(Default)]
struct Encoding {
    function: Option<Function>,
    bound: Vec<Bound>,
    shared: Vec<usize>,
    read: HashSet<usize>,
    written: HashSet<usize>,
}

struct Encoder {
    buffer: Recorded,
    state: Mutex<Encoding>,
}

pub trait MTLCommandEncoder {
    fn endEncoding(&self);
    fn setLabel(&self, label: Option<&NSString>);
}

impl MTLCommandEncoder for ProtocolObject<dyn MTLComputeCommandEncoder> {
    fn endEncoding(&self) {}

    fn setLabel(&self, _: Option<&NSString>) {}
}

impl MTLCommandEncoder for ProtocolObject<dyn MTLBlitCommandEncoder> {
    fn endEncoding(&self) {}

    fn setLabel(&self, _: Option<&NSString>) {}
}

#[allow(clippy::missing_safety_doc)]
pub trait MTLComputeCommandEncoder {
    fn setComputePipelineState(&self, pipeline: &ProtocolObject<dyn MTLComputePipelineState>);
    unsafe fn setBuffer_offset_atIndex(
        &self,
        buffer: Option<&ProtocolObject<dyn MTLBuffer>>,
        offset: usize,
        index: usize,
    );
    unsafe fn setBytes_length_atIndex(&self, bytes: NonNull<c_void>, length: usize, index: usize);
    unsafe fn setThreadgroupMemoryLength_atIndex(&self, length: usize, index: usize);
    fn dispatchThreads_threadsPerThreadgroup(&self, grid: MTLSize, threads: MTLSize);
    fn dispatchThreadgroups_threadsPerThreadgroup(&self, groups: MTLSize, threads: MTLSize);
    fn memoryBarrierWithScope(&self, scope: MTLBarrierScope);
    fn waitForFence(&self, fence: &ProtocolObject<dyn MTLFence>);
    fn updateFence(&self, fence: &ProtocolObject<dyn MTLFence>);
}

impl Encoder {
    fn state(&self) -> MutexGuard<'_, Encoding> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bind(&self, index: usize, bound: Bound) {
        let mut state = self.state();
        if state.bound.len() <= index {
            state.bound.resize(index + 1, Bound::Nothing);
        }
        state.bound[index] = bound;
    }

    fn dispatch(&self, groups: [usize; 3], threads: [usize; 3]) {
        let mut state = self.state();
        let function = state.function.clone().expect("a pipeline is set before a dispatch");
        let name = function.name();
        let shared: usize = state.shared.iter().sum();
        assert!(!groups.contains(&0), "{name}: a grid of nothing");
        assert!(threads.iter().product::<usize>() <= 1024, "{name}: too many threads");
        assert!(shared <= 32 << 10, "{name}: {shared} bytes of threadgroup memory");
        // Dispatches between two barriers may run at the same time.
        let used: Vec<(usize, bool)> = state
            .bound
            .iter()
            .enumerate()
            .filter_map(|(i, bound)| match bound {
                Bound::Buffer(memory, _) => Some((memory.address.addr(), function.writes().contains(&i))),
                _ => None,
            })
            .collect();
        for &(address, writes) in &used {
            let conflict = state.written.contains(&address) || (writes && state.read.contains(&address));
            assert!(!conflict, "{name}: a buffer is in use by an earlier dispatch, and there is no barrier");
        }
        for (address, writes) in used {
            if writes {
                state.written.insert(address)
            } else {
                state.read.insert(address)
            };
        }
        stand_in::dispatched(name);
        // A device keeps what is bound; here each dispatch binds its own arguments, so that none is forgotten.
        let (bound, shared) = (std::mem::take(&mut state.bound), std::mem::take(&mut state.shared));
        self.buffer.state().commands.push(Command::Dispatch { function, bound, shared, groups, threads });
    }
}

impl MTLComputeCommandEncoder for ProtocolObject<dyn MTLComputeCommandEncoder> {
    fn setComputePipelineState(&self, pipeline: &ProtocolObject<dyn MTLComputePipelineState>) {
        self.object::<Encoder>().state().function = Some(pipeline.object::<Function>().clone());
    }

    unsafe fn setBuffer_offset_atIndex(
        &self,
        buffer: Option<&ProtocolObject<dyn MTLBuffer>>,
        offset: usize,
        index: usize,
    ) {
        let bound = buffer.map_or(Bound::Nothing, |buffer| {
            let memory = buffer.object::<Memory>().clone();
            assert!(offset <= memory.length, "an offset past the end of a buffer");
            Bound::Buffer(memory, offset)
        });
        self.object::<Encoder>().bind(index, bound);
    }

    unsafe fn setBytes_length_atIndex(&self, bytes: NonNull<c_void>, length: usize, index: usize) {
        assert!(length <= 4096, "a command carries at most 4096 bytes");
        // Words, so that they are aligned for any type.
        let mut words = vec![0u64; length.div_ceil(8)];
        // SAFETY: the caller vouches for so many bytes, and there is room for them.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr().cast::<u8>(),
                words.as_mut_ptr().cast::<u8>(),
                length,
            )
        };
        self.object::<Encoder>().bind(index, Bound::Bytes(words, length));
    }

    unsafe fn setThreadgroupMemoryLength_atIndex(&self, length: usize, index: usize) {
        assert!(length.is_multiple_of(16), "threadgroup memory comes in multiples of 16 bytes");
        let mut state = self.object::<Encoder>().state();
        if state.shared.len() <= index {
            state.shared.resize(index + 1, 0);
        }
        state.shared[index] = length;
    }

    fn dispatchThreads_threadsPerThreadgroup(&self, grid: MTLSize, threads: MTLSize) {
        let (grid, threads) = (grid.array(), threads.array());
        let groups = std::array::from_fn(|d| grid[d].div_ceil(threads[d]));
        self.object::<Encoder>().dispatch(groups, threads);
    }

    fn dispatchThreadgroups_threadsPerThreadgroup(&self, groups: MTLSize, threads: MTLSize) {
        self.object::<Encoder>().dispatch(groups.array(), threads.array());
    }

    fn memoryBarrierWithScope(&self, _: MTLBarrierScope) {
        let mut state = self.object::<Encoder>().state();
        state.read.clear();
        state.written.clear();
    }

    fn waitForFence(&self, _: &ProtocolObject<dyn MTLFence>) {}

    fn updateFence(&self, _: &ProtocolObject<dyn MTLFence>) {}
}

#[allow(clippy::missing_safety_doc)]
pub trait MTLBlitCommandEncoder {
    unsafe fn copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size(
        &self,
        from: &ProtocolObject<dyn MTLBuffer>,
        start: usize,
        to: &ProtocolObject<dyn MTLBuffer>,
        at: usize,
        length: usize,
    );
    fn fillBuffer_range_value(&self, buffer: &ProtocolObject<dyn MTLBuffer>, range: NSRange, value: u8);
    fn waitForFence(&self, fence: &ProtocolObject<dyn MTLFence>);
    fn updateFence(&self, fence: &ProtocolObject<dyn MTLFence>);
}

impl MTLBlitCommandEncoder for ProtocolObject<dyn MTLBlitCommandEncoder> {
    unsafe fn copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size(
        &self,
        from: &ProtocolObject<dyn MTLBuffer>,
        start: usize,
        to: &ProtocolObject<dyn MTLBuffer>,
        at: usize,
        length: usize,
    ) {
        let (from, to) = (from.object::<Memory>().clone(), to.object::<Memory>().clone());
        assert!(start + length <= from.length && at + length <= to.length, "a copy past the end of a buffer");
        stand_in::dispatched("copy");
        self.object::<Recorded>().state().commands.push(Command::Copy { from, start, to, at, length });
    }

    fn fillBuffer_range_value(&self, buffer: &ProtocolObject<dyn MTLBuffer>, range: NSRange, value: u8) {
        let memory = buffer.object::<Memory>().clone();
        assert!(range.location + range.length <= memory.length, "a fill past the end of a buffer");
        stand_in::dispatched("fill");
        self.object::<Recorded>().state().commands.push(Command::Fill { memory, range, value });
    }

    fn waitForFence(&self, _: &ProtocolObject<dyn MTLFence>) {}

    fn updateFence(&self, _: &ProtocolObject<dyn MTLFence>) {}
}
