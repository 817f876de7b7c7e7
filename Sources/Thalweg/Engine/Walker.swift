import CThalweg

/// One state buffer of one tensor, as stored.
struct SlotStore {
  enum Format: UInt8 { case direct, bf16, signed8, positive8 }
  var base: UnsafeMutableRawPointer
  var format: Format

  /// Elements start..<start+n of a tensor of `total` elements in the compute type, where they are stored in fewer bits.
  func widen(_ total: Int, _ start: Int, _ n: Int, _ out: UnsafeMutablePointer<Float>) {
    switch format {
    case .direct: break
    case .bf16: SixteenBit.decode(base, start, n, out)
    case .signed8: EightBit.decode(base, total, start, n, out, signed: true)
    case .positive8: EightBit.decode(base, total, start, n, out, signed: false)
    }
  }
  /// The way back; without a key to nearest.
  func narrow(_ total: Int, _ start: Int, _ n: Int, _ values: UnsafeMutablePointer<Float>, _ key: UInt64?) {
    switch format {
    case .direct: break
    case .bf16: SixteenBit.encode(base, start, n, values, key)
    case .signed8: EightBit.encode(base, total, start, n, values, signed: true, key)
    case .positive8: EightBit.encode(base, total, start, n, values, signed: false, key)
    }
  }

  static func bytes(_ format: Format, _ count: Int, _ compute: Int) -> Int {
    switch format {
    case .direct: count * compute
    case .bf16: count * 2
    case .signed8, .positive8: EightBit.bytes(count)
    }
  }
}

/// One bound tensor: plain data, so that a step touches no reference counts.
struct Record {
  var x: Layout
  var g: Layout
  var shadow: Layout?
  var count: Int
  /// Bytes of an element of the compute type.
  var size: Int
  var branch: Int
  var group: Int
  /// Keys the tensor's random draws: its position when it was bound, and the same number wherever a checkpoint is
  /// loaded.
  var key: UInt32 = 0
  /// Steps of this tensor.
  var t = 0
  /// What starts at the parameters has started.
  var started = false
  var active = false
  /// Whether it took part before the present step began.
  var tookPart = false
  var bound = false
  var absent = false
  /// There is a gradient that may be read.
  var present: Bool { bound && !absent }
  var isDouble: Bool
  var firstBlock = 0
  var blocks = 0
  /// The state, stage after stage; `firstSlot[stage]` says where a stage's begins.
  var slots: UnsafeMutablePointer<SlotStore>
  var slotCount: Int
  var firstSlot: UnsafeMutablePointer<Int32>
  /// For each stage of the pipeline: its prepared rule, and its scalars.
  var rules: UnsafeMutablePointer<UnsafeMutableRawPointer>
  var ownRules: UnsafeMutablePointer<UnsafeMutableRawPointer>
  var scalars: UnsafeMutablePointer<UnsafeMutablePointer<Double>>
  var apply = Apply()
  /// Whole-tensor scratch in the compute type, where the branch needs it.
  var scratch: UnsafeMutableRawPointer?
  /// The parameters that the update moves, where they are not the host's: master weights, stored tensors of views.
  var master: UnsafeMutableRawPointer?
  /// The host does not see the master rounded, but a view of it.
  var viewed = false
  /// Where each source keeps the parameters while they are away, if it moves them; bit k of `away`: those of source k
  /// lie there now.
  var homes: UnsafeMutablePointer<UnsafeMutableRawPointer?>
  var away: UInt32 = 0
  /// Some state is made of the parameters, and starts anew where the host writes them; `marked`: the marks of the last
  /// step hold.
  var watched: Bool { marks != nil }
  var marks: UnsafeMutableRawPointer?
  var marked = false
  var rounding: UInt64?
  /// The key of this step's rounding of narrow state.
  var stateKey: UInt64 = 0

  /// The mark of the chunk that begins at an element.
  @inline(__always) func mark(_ start: Int) -> UnsafeMutableRawPointer? {
    marks.map { $0 + Marks.offset(start) }
  }
  /// Bytes of the marks of n elements, a chunk or what is left of one.
  func markBytes(_ n: Int) -> Int { Marks.bytes(n, of: count, x.dtype.size) }
  /// Marks the chunk that begins at an element.
  func takeMark(_ start: Int, _ n: Int, _ out: UnsafeMutableRawPointer) { Marks.take(x, start, n, of: count, out) }
  @inline(__always) func slot(_ stage: Int, _ k: Int) -> SlotStore { slots[Int(firstSlot[stage]) + k] }
  /// The key of a slot's rounding. State that a stage changes in several walks of a step is rounded anew in each:
  /// `walk` tells them apart.
  @inline(__always) func key(_ stage: Int, _ k: Int, walk: Int = 0) -> UInt64 {
    Random.mix(stateKey, UInt64(truncatingIfNeeded: Int(firstSlot[stage]) &+ k | walk &<< 32))
  }
  @inline(__always) func used(_ stage: Int) -> Int { Int(firstSlot[stage + 1] - firstSlot[stage]) }
}

/// How tensors are cut.
enum Walker {
  /// Elements of a block: the grain of reductions.
  package static let block = 4096
  /// Blocks of a task of a large tensor.
  static let taskBlocks = 16
  /// Below this many elements a step stays on the calling thread.
  static let parallelFrom = 32_768
}
