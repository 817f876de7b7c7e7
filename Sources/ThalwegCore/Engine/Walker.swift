import CThalweg

/// One state buffer of one tensor, as stored.
public struct SlotStore {
  public enum Format: UInt8 { case direct, bf16, signed8, positive8 }
  public var base: UnsafeMutableRawPointer
  public var format: Format
  /// It is widened for the rule that it belongs to: the rule looks at it.
  public var isWidened: Bool
  public init(base: UnsafeMutableRawPointer, format: Format, apart: Bool = false) {
    (self.base, self.format, isWidened) = (base, format, format != .direct && !apart)
  }

  /// Elements start..<start+n of a tensor of `total` elements in the compute type, where they are stored in fewer bits.
  public func widen(_ total: Int, _ start: Int, _ n: Int, _ out: UnsafeMutablePointer<Float>) {
    switch format {
    case .direct: break
    case .bf16: SixteenBit.decode(base, start, n, out)
    case .signed8: EightBit.decode(base, total, start, n, out, signed: true)
    case .positive8: EightBit.decode(base, total, start, n, out, signed: false)
    }
  }
  /// The way back; without a key to nearest.
  public func narrow(_ total: Int, _ start: Int, _ n: Int, _ values: UnsafeMutablePointer<Float>, _ key: UInt64?) {
    switch format {
    case .direct: break
    case .bf16: SixteenBit.encode(base, start, n, values, key)
    case .signed8: EightBit.encode(base, total, start, n, values, signed: true, key)
    case .positive8: EightBit.encode(base, total, start, n, values, signed: false, key)
    }
  }

  public static func bytes(_ format: Format, _ count: Int, _ compute: Int) -> Int {
    switch format {
    case .direct: count * compute
    case .bf16: count * 2
    case .signed8, .positive8: EightBit.bytes(count)
    }
  }
}

/// One bound tensor: plain data, so that a step touches no reference counts.
public struct Record {
  public var x: Layout
  public var g: Layout
  public var shadow: Layout?
  public var count: Int
  /// Bytes of an element of the compute type.
  public var size: Int
  public var branch: Int
  public var group: Int
  /// Keys the tensor's random draws: its position when it was bound, and the same number wherever a checkpoint is
  /// loaded.
  public var key: UInt32 = 0
  /// Steps of this tensor.
  public var t = 0
  /// What starts at the parameters has started.
  public var started = false
  public var active = false
  /// Whether it took part before the present step began.
  public var tookPart = false
  public var bound = false
  public var absent = false
  /// There is a gradient that may be read.
  public var present: Bool { bound && !absent }
  public var isDouble: Bool
  public var firstBlock = 0
  public var blocks = 0
  /// The state, stage after stage; `firstSlot[stage]` says where a stage's begins.
  public var slots: UnsafeMutablePointer<SlotStore>
  public var slotCount: Int
  public var firstSlot: UnsafeMutablePointer<Int32>
  /// For each stage of the pipeline: its prepared rule, and its scalars.
  public var rules: UnsafeMutablePointer<UnsafeMutableRawPointer>
  public var ownRules: UnsafeMutablePointer<UnsafeMutableRawPointer>
  public var scalars: UnsafeMutablePointer<UnsafeMutablePointer<Double>>
  public var apply = Apply()
  /// The decoupled decay over the step size, as stages have decided on it.
  public var decay = 0.0
  /// Whole-tensor scratch in the compute type, where the branch needs it.
  public var scratch: UnsafeMutableRawPointer?
  /// A second one, where stages compare an update with a gradient that whole-tensor stages have made.
  public var second: UnsafeMutableRawPointer?
  /// The segments of the plan that go through strips of it together, and the elements of a strip; 0: none do.
  public var stripped: Swift.Range<Int> = 0..<0
  public var strip = 0
  /// No other segment uses the scratch tensor: a strip of it is enough.
  public var scratchesInStrips = false
  /// The parameters that the update moves, where they are not the host's: master weights, stored tensors of views.
  public var master: UnsafeMutableRawPointer?
  /// The host does not see the master rounded, but a view of it.
  public var viewed = false
  /// While written parameters are looked for: not 0 where some were found.
  public var rewritten: Int64 = 0
  /// The host's own memory, where it is dense and of the compute type.
  @inlinable public var plain: UnsafeMutableRawPointer? {
    x.dense && x.dtype == (isDouble ? .f64 : .f32) ? x.data : nil
  }
  /// Where each source keeps the parameters while they are away, if it moves them; bit k of `away`: those of source k
  /// lie there now.
  public var homes: UnsafeMutablePointer<UnsafeMutableRawPointer?>
  public var away: UInt32 = 0
  /// Some state is made of the parameters, and starts anew where the host writes them; `marked`: the marks of the last
  /// step hold.
  public var watched: Bool { marks != nil }
  public var marks: UnsafeMutableRawPointer?
  public var marked = false
  public var rounding: UInt64?
  /// The key of this step's rounding of narrow state.
  public var stateKey: UInt64 = 0

  public init(
    x: Layout, g: Layout, count: Int, size: Int, branch: Int, group: Int, key: UInt32, isDouble: Bool,
    slots: UnsafeMutablePointer<SlotStore>, firstSlot: UnsafeMutablePointer<Int32>,
    rules: UnsafeMutablePointer<UnsafeMutableRawPointer>, ownRules: UnsafeMutablePointer<UnsafeMutableRawPointer>,
    scalars: UnsafeMutablePointer<UnsafeMutablePointer<Double>>,
    homes: UnsafeMutablePointer<UnsafeMutableRawPointer?>
  ) {
    (self.x, self.g, self.count, self.size, self.isDouble) = (x, g, count, size, isDouble)
    (self.branch, self.group, self.key) = (branch, group, key)
    (self.slots, slotCount, self.firstSlot, self.homes) = (slots, 0, firstSlot, homes)
    (self.rules, self.ownRules, self.scalars) = (rules, ownRules, scalars)
  }

  /// The mark of the chunk that begins at an element.
  @inlinable @inline(__always) public func mark(_ start: Int) -> UnsafeMutableRawPointer? {
    marks.map { $0 + Marks.offset(start) }
  }
  /// Bytes of the marks of n elements, a chunk or what is left of one.
  public func markBytes(_ n: Int) -> Int { Marks.bytes(n, of: count, x.dtype.size) }
  /// Marks the chunk that begins at an element.
  public func takeMark(_ start: Int, _ n: Int, _ out: UnsafeMutableRawPointer) {
    Marks.take(x, start, n, of: count, out)
  }
  @inlinable @inline(__always) public func slot(_ stage: Int, _ k: Int) -> SlotStore {
    slots[Int(firstSlot[stage]) + k]
  }
  /// The key of a slot's rounding. State that a stage changes in several walks of a step is rounded anew in each:
  /// `walk` tells them apart.
  @inlinable @inline(__always) public func key(_ stage: Int, _ k: Int, walk: Int = 0) -> UInt64 {
    Random.mix(stateKey, UInt64(truncatingIfNeeded: Int(firstSlot[stage]) &+ k | walk &<< 32))
  }
  @inlinable @inline(__always) public func used(_ stage: Int) -> Int { Int(firstSlot[stage + 1] - firstSlot[stage]) }
}

/// How tensors are cut.
public enum Walker {
  /// Elements of a block: the grain of reductions.
  public static let block = 4096
  /// Blocks of a task of a large tensor.
  public static let taskBlocks = 16
  /// Below this many elements a step stays on the calling thread.
  public static let parallelFrom = 32_768
}
