import CThalweg
import Glibc

/// What is done to a run of elements of one tensor: laid out once, then carried out chunk after chunk.
///
/// A chunk is short: every stream of memory advances with the others, so that the processor fetches them all at once
/// and computes meanwhile, and what is copied or widened stays in the first-level cache. A program of a single kernel
/// over memory that is there already needs no chunks. One program serves one thread.
public final class Program {
  /// Elements of a chunk: whole blocks of 8-bit state. Where nothing goes through scratch memory a chunk is longer,
  /// since only its streams need to stay in a cache, and nothing is asked for ahead: the processor sees what comes.
  public static let chunk = 512, longChunk = 2048
  private static let rowBytes = chunk * 8 + 64  // not a power of two: rows must not compete for the same cache sets

  /// Where an operand is: in a tensor, where it advances with the elements, or in a row of scratch memory, where it
  /// stays.
  public struct Place {
    public var base: UnsafeMutableRawPointer
    public var moves: Bool
  }

  private let memory: Memory
  /// For strips: the place of the scratch tensor, of which a strip needs no more than itself, and behind it the work
  /// space of whole-tensor stages.
  private var room: Memory?, stripBytes = 0, lent: UnsafeMutableRawPointer?
  private let sums: UnsafeMutablePointer<Sums>
  private let codecs: UnsafeMutablePointer<Codec>
  private var folding: Folding
  var steps: ContiguousArray<Step> = []
  private var streams: ContiguousArray<Stream> = []
  private var r: UnsafeMutablePointer<Record>
  private var at = 0
  /// Something is copied, widened or done in several steps.
  private var chunked = false
  /// Something lies in scratch memory.
  private var scratches = false
  /// It takes sums.
  private var measures = false

  /// Told of chunks whose parameters are not as the last step left them: where they begin, how many they are, their
  /// mark now and then.
  public typealias Written = (
    UnsafeMutablePointer<Record>, _ start: Int, _ count: Int, _ now: UnsafeRawPointer, _ then: UnsafeRawPointer
  ) -> Void
  private let written: Written

  public init(_ allocator: Allocator, written: @escaping Written) throws(Failure) {
    self.written = written
    // First: an initialiser that throws after an allocation would leak it.
    memory = try Memory((SlotPointers.capacity + 4) * Program.rowBytes + aligned(Operands.padBytes), allocator)
    folding = Folding()
    sums = .allocate(capacity: 1)
    sums.initialize(to: Sums())
    codecs = .allocate(capacity: SlotPointers.capacity)
    r = UnsafeMutableRawPointer(sums).assumingMemoryBound(to: Record.self)  // until `begin`
    steps.reserveCapacity(64)
    streams.reserveCapacity(64)
  }
  deinit {
    sums.deallocate()
    codecs.deallocate()
    folding.deallocate()
  }

  private enum Row { static let gradient = 0, update = 1, parameter = 2, source = 3, slots = 4 }
  private func row(_ k: Int) -> UnsafeMutableRawPointer { memory.base + k &* Program.rowBytes }
  private var pad: UnsafeMutableRawPointer { row(SlotPointers.capacity + 4) }
  private var native: DType { r.pointee.isDouble ? .f64 : .f32 }
  private func tensor(_ base: UnsafeMutableRawPointer) -> Place {
    Place(base: base + at &* r.pointee.size, moves: true)
  }

  // MARK: laying out

  /// Begins a program for the elements of `r` from `offset` on.
  public func begin(_ r: UnsafeMutablePointer<Record>, at offset: Int) {
    steps.removeAll(keepingCapacity: true)
    streams.removeAll(keepingCapacity: true)
    (self.r, at, chunked, scratches, measures) = (r, offset, false, false, false)
    unfold()
  }

  /// The element-wise gradient in the compute type: the host's own memory where it may be read directly, else a copy,
  /// times what `apply` asks for.
  public func gradient(copy: Bool, _ apply: inout Apply) -> Place {
    if !copy, r.pointee.g.dense, r.pointee.g.dtype == native { return tensor(r.pointee.g.data) }
    let place = Place(base: row(Row.gradient), moves: false)
    read(layout(Program.g), place, scale: apply.scale)
    apply.scale = 1
    return place
  }

  /// The same as the source makes it: what it kept, or an operation on a copy of its own.
  public func gradient(_ op: GradientOperation, copy: Bool, _ apply: inout Apply) -> Place {
    let own = Place(base: row(Row.source), moves: false)
    var place: Place?
    for op in op.under + [op] {
      nonisolated(unsafe) let r = r, list = r.pointee.slots + Int(r.pointee.firstSlot[op.stage])
      guard let run = op.run else {
        place = tensor(list[op.slots[0]].base)
        continue
      }
      if !op.blends {
        if let place { self.copy(place, to: own) } else { read(layout(Program.g), own, scale: apply.scale) }
      }
      add(own, own, op.stage, op.blends ? [] : op.slots) { _, _, o in run(r, o, list, o.index) }
      chunked = true
      place = own
    }
    apply.scale = 1
    guard let made = place, copy else { return place ?? own }
    let copied = Place(base: row(Row.gradient), moves: false)
    self.copy(made, to: copied)
    return copied
  }

  /// The parameters that the update moves: the master copy, the host's own memory where it is dense in the compute
  /// type, else a copy.
  public func parameters() -> Place { r.pointee.master.map(tensor) ?? hostParameters() }

  /// The parameters as the host sees them: where gradients are taken.
  public func hostParameters() -> Place {
    if let plain = r.pointee.plain { return tensor(plain) }
    let place = Place(base: row(Row.parameter), moves: false)
    read(layout(Program.x), place, scale: 1)
    return place
  }

  /// Takes what the host has written into its 16-bit parameters since the last step over into the master copy.
  public func adopt(_ master: Place) {
    append(.adopt, operands(master, master)) { $0.layout = self.layout(Program.x) }
    chunked = true
    follow(layout(Program.x))
  }

  /// Compares the parameters with what the last step left, and marks what this one leaves.
  public func notice() { watch(.notice) }
  public func mark() { watch(.mark) }
  private func watch(_ kind: Step.Kind) {
    let none = Place(base: pad, moves: false)
    append(kind, operands(none, none)) { $0.layout = self.layout(Program.x) }
    chunked = true
    follow(layout(Program.x))
  }

  /// Brings changed parameters to the host, and to the shadow.
  public func close(_ p: Place) {
    if (!p.moves || r.pointee.master != nil) && !r.pointee.viewed {
      write(p, layout(Program.x), rounding: r.pointee.rounding)
    }
    if r.pointee.shadow != nil { write(p, layout(Program.shadow), rounding: nil) }
  }
  private static let (x, g, shadow) = (
    MemoryLayout<Record>.offset(of: \.x) ?? 0, MemoryLayout<Record>.offset(of: \.g) ?? 0,
    MemoryLayout<Record>.offset(of: \.shadow) ?? 0
  )
  private func layout(_ offset: Int) -> UnsafePointer<Layout> {
    (UnsafeRawPointer(r) + offset).assumingMemoryBound(to: Layout.self)
  }
  /// Brings parameters that were changed as the host sees them to the host.
  public func closeHost(_ p: Place) { if !p.moves { write(p, layout(Program.x), rounding: nil) } }

  /// What the host sees becomes what lies at `home` in the compute type.
  public func comeHome(_ home: UnsafeMutableRawPointer) {
    if let plain = r.pointee.plain {
      copy(tensor(home), to: tensor(plain))
    } else {
      write(tensor(home), layout(Program.x), rounding: nil)
    }
  }

  /// A row for a gradient, and one for an update.
  public var gradientRow: Place { Place(base: row(Row.gradient), moves: false) }
  public var update: Place { Place(base: row(Row.update), moves: false) }
  /// The scratch tensor, or nothing where the branch has none.
  public func scratch() -> Place? { scratch(r).map(tensor) }
  /// The second scratch tensor, which is no strip's.
  public func second() -> Place? { r.pointee.second.map(tensor) }
  public func scratch(_ r: UnsafeMutablePointer<Record>) -> UnsafeMutableRawPointer? {
    r.pointee.scratch.map { lent ?? $0 }
  }
  /// Room for strips of so many bytes, and for as much work space.
  public func makeRoom(_ strip: Int, _ work: Int, _ allocator: Allocator) throws(Failure) {
    let first = max(aligned(strip), stripBytes), all = first + max(work, (room?.size ?? 0) - stripBytes)
    if let room, first == stripBytes, all <= room.size { return }
    room = try Memory(all, allocator, zeroed: false)
    stripBytes = first
  }
  /// The work space of strips.
  public var workspace: UnsafeMutableRawPointer { room.map { $0.base + stripBytes } ?? memory.base }
  /// Scratch memory is the room for strips, for the elements from `byte` of a tensor on; nil: it is the tensor's own.
  public func lend(from byte: Int?) { lent = byte.flatMap { byte in room.map { $0.base - byte } } }
  /// State that lies in the compute type.
  public func state(_ stage: Int, _ k: Int) -> Place { tensor(r.pointee.slot(stage, k).base) }

  public func copy(_ from: Place, to: Place) {
    guard from.base != to.base else { return }
    append(.copy, operands(to, from))
  }
  public func clearGradient() { append(.clear, operands(update, update)) { $0.layout = self.layout(Program.g) } }

  /// Runs one of a stage's kernels (for f32, for f64) over v and w, with its state, which it may change or only read.
  public func run(
    _ k: (ElementKernels.Kernel, ElementKernels.Kernel), _ stage: Int, _ apply: Apply, _ v: Place, _ w: Place,
    changes: Bool = true
  ) {
    withState(stage, v, w, changes: changes) { o, moving in
      append(.kernel, (o, moving)) {
        $0.kernel = self.r.pointee.isDouble ? k.1 : k.0
        $0.rule = UnsafeRawPointer(self.r.pointee.rules[stage])
        $0.apply = apply
      }
    }
  }
  /// Runs the whole update of a rule. Narrow state is decoded and encoded inside the kernel, as far as whole blocks
  /// reach.
  public func fuse(_ e: ElementKernels, _ stage: Int, _ apply: Apply, _ x: Place, _ g: Place) {
    let base = r.pointee.slots + Int(r.pointee.firstSlot[stage]),
      used = min(r.pointee.used(stage), SlotPointers.capacity)
    if !folding.isEmpty { return fuseFolded(e, stage, apply, x, g) }
    guard !r.pointee.isDouble, (0..<used).contains(where: { base[$0].isWidened }) else {
      return run(e.fused, stage, apply, x, g)
    }
    let first = steps.count, alone = steps.isEmpty
    run(e.fused, stage, apply, x, g)
    for i in first..<steps.count { steps[i].part = .rest }
    var (o, moving) = operands(x, g)
    o.used = used
    (o.codecs, o.codecCount) = (codecs, 0)
    for k in 0..<used {
      if base[k].format == .direct {
        o.slots[k] = base[k].base + at &* 4
        moving |= 4 << UInt32(k)
      } else if base[k].isWidened {
        let values = row(Row.slots + k).assumingMemoryBound(to: Float.self)
        scratches = true
        (codecs + o.codecCount).initialize(
          to: Codec(
            base[k], slot: k, total: r.pointee.count, offset: at, values: values, key: r.pointee.key(stage, k)))
        o.codecCount += 1
      }
    }
    append(.kernel, (o, moving)) {
      $0.part = .blocks
      ($0.kernel, $0.rule, $0.apply) = (e.packed, UnsafeRawPointer(self.r.pointee.rules[stage]), apply)
    }
    if alone { chunked = false }
  }
  private func fuseFolded(_ e: ElementKernels, _ stage: Int, _ apply: Apply, _ x: Place, _ g: Place) {
    withState(stage, x, g) { o, moving in
      var (o, moving) = (o, moving)
      folding.show(to: &o)
      if let averaged = folding.averaged {
        let place = state(averaged, 0)
        o.slots[Fold.slot] = place.base
        follow(place.base, r.pointee.size)
        moving |= 4 << UInt32(Fold.slot)
      }
      append(.kernel, (o, moving)) {
        ($0.kernel, $0.rule, $0.apply) = (e.folded, UnsafeRawPointer(self.r.pointee.rules[stage]), apply)
      }
    }
  }
  /// Whether the kernel of this stage can do something for others on its way: one in float32, over state in float32.
  public func mayFold(_ stage: Int) -> Bool {
    !r.pointee.isDouble && r.pointee.used(stage) <= Fold.slot
      && (0..<r.pointee.used(stage)).allSatisfy { r.pointee.slot(stage, $0).format == .direct }
  }
  /// The next rule does what the stage does, if that can be said in numbers.
  public func fold(_ e: ElementKernels, _ stage: Int) -> Bool { folding.add(e, stage, r) }
  /// What is folded so far is done before the rule, what comes behind it.
  public func turnFold() { folding.turn() }
  public func unfold() { folding.clear() }

  /// Moves parameters along an update that is there.
  public func move(_ x: Place, _ u: Place, _ apply: Apply) {
    append(.kernel, operands(x, u)) {
      $0.kernel = self.r.pointee.isDouble ? Identity.kernels.fused.1 : Identity.kernels.fused.0
      $0.apply = apply
    }
  }
  public func measure(
    _ k: (ElementKernels.Measure, ElementKernels.Measure), _ stage: Int, _ phase: Int, _ apply: Apply, _ v: Place,
    _ w: Place
  ) {
    withState(stage, v, w, walk: phase + 1) { o, moving in
      append(.measure, (o, moving)) {
        $0.measure = self.r.pointee.isDouble ? k.1 : k.0
        $0.rule = UnsafeRawPointer(self.r.pointee.rules[stage])
        ($0.apply, $0.phase) = (apply, phase)
      }
    }
  }
  /// Runs a kernel that belongs to no stage.
  public func add(_ v: Place, _ w: Place, _ kernel: @escaping ElementKernels.Kernel) {
    append(.kernel, operands(v, w)) { $0.kernel = kernel }
  }
  public func sum(_ v: Place, _ w: Place, _ measure: @escaping ElementKernels.Measure) {
    append(.measure, operands(v, w)) { $0.measure = measure }
  }
  /// The same over the slots of a stage that are named, in that order; sums change none.
  public func add(_ v: Place, _ w: Place, _ stage: Int, _ order: [Int], _ kernel: @escaping ElementKernels.Kernel) {
    withState(stage, v, w, order) { o, moving in append(.kernel, (o, moving)) { $0.kernel = kernel } }
  }
  public func sum(_ v: Place, _ w: Place, _ stage: Int, _ order: [Int], _ measure: @escaping ElementKernels.Measure) {
    withState(stage, v, w, order, changes: false) { o, moving in
      append(.measure, (o, moving)) { $0.measure = measure }
    }
  }

  private func read(_ layout: UnsafePointer<Layout>, _ to: Place, scale: Double) {
    append(.read, operands(to, to)) {
      $0.layout = layout
      $0.apply.scale = scale
    }
    chunked = true
    follow(layout)
  }
  private func write(_ from: Place, _ layout: UnsafePointer<Layout>, rounding: UInt64?) {
    append(.write, operands(from, from)) { ($0.layout, $0.rounding) = (layout, rounding) }
    chunked = true
    follow(layout)
  }

  private func operands(_ v: Place, _ w: Place) -> (Operands, UInt32) {
    let o = Operands(
      x: v.base, g: w.base, slots: SlotPointers(repeating: pad), used: 0, count: 0, index: at, pad: pad)
    let moving: UInt32 = (v.moves ? 1 | Program.aheadBit | Program.outBit : 0) | (w.moves ? 2 : 0)
    if !(v.moves && w.moves), v.base != pad { scratches = true }
    if v.moves { follow(v.base, r.pointee.size) }
    if w.moves { follow(w.base, r.pointee.size) }
    return (o, moving)
  }

  /// Widens the state that is stored in fewer bits, lets `body` add a step over it, and narrows it again; of all slots
  /// but those of the source, or of those named.
  @inline(__always)
  private func withState(
    _ stage: Int, _ v: Place, _ w: Place, _ order: [Int]? = nil, walk: Int = 0, changes: Bool = true,
    _ body: (Operands, UInt32) -> Void
  ) {
    var (o, moving) = operands(v, w)
    let base = r.pointee.slots + Int(r.pointee.firstSlot[stage])
    o.used = min(order?.count ?? r.pointee.used(stage), SlotPointers.capacity)
    var narrow: UInt32 = 0
    for k in 0..<o.used {
      let store = base + (order?[k] ?? k)
      if store.pointee.format == .direct {
        o.slots[k] = store.pointee.base + at &* r.pointee.size
        follow(o.slots[k], r.pointee.size)
        moving |= 4 << UInt32(k)
      } else if order != nil || store.pointee.isWidened {
        o.slots[k] = row(Row.slots + k)
        narrow |= 1 << UInt32(k)
        convert(.widen, store, k, nil)
      }
    }
    body(o, moving)
    guard changes else { return }
    for k in 0..<o.used where narrow & (1 << UInt32(k)) != 0 {
      let slot = order?[k] ?? k
      convert(.narrow, base + slot, k, r.pointee.key(stage, slot, walk: walk))
    }
  }
  private func convert(_ kind: Step.Kind, _ store: UnsafePointer<SlotStore>, _ k: Int, _ key: UInt64?) {
    let place = Place(base: row(Row.slots + k), moves: false)
    append(kind, operands(place, place)) { ($0.store, $0.rounding) = (store, key) }
    chunked = true
    let size = store.pointee.format == .bf16 ? 2 : 1
    follow(store.pointee.base + at &* size, size)
  }

  @inline(__always)
  private func append(_ kind: Step.Kind, _ o: (Operands, UInt32), _ change: (inout Step) -> Void = { _ in }) {
    var s = Step(kind: kind, o: o.0, moving: o.1, rule: UnsafeRawPointer(pad))
    change(&s)
    lookAhead(s)
    if !steps.isEmpty { chunked = true }
    if kind == .measure { measures = true }
    steps.append(s)
  }

  /// The state of a later step is asked for while an earlier kernel computes, which has streams of its own.
  private func lookAhead(_ later: Step) {
    guard let first = steps.first, first.kind == .kernel, first.part == .all, !first.looksAhead else { return }
    for k in 0..<later.o.used where later.moving & (4 << UInt32(k)) != 0 {
      steps[0].o.ahead = later.o.slots[k]
      steps[0].moving |= Program.aheadBit
      steps[0].looksAhead = true
      return
    }
  }
  static let aheadBit: UInt32 = 4 << UInt32(SlotPointers.capacity)  // `ahead` and `out` follow the slots in memory
  static let outBit = aheadBit << 1

  private func follow(_ start: UnsafeMutableRawPointer, _ size: Int) {
    for s in streams where s.start == start { return }
    streams.append(Stream(start: start, size: size))
  }
  private func follow(_ layout: UnsafePointer<Layout>) {
    let size = layout.pointee.dtype.size
    if layout.pointee.dense { follow(layout.pointee.data + at &* size, size) }
  }

  // MARK: carrying out

  /// Carries the program out for the next `count` elements; `out` receives the sums that it takes.
  public func execute(_ count: Int, _ out: UnsafeMutablePointer<Double>) {
    let length = !chunked ? max(count, 1) : scratches ? Program.chunk : Program.longChunk
    // Between the steps of a chunk the next one is fetched, a share at a time: memory works while the steps compute.
    let share = (streams.reduce(0) { $0 + $1.size } &* Program.chunk / 64 + steps.count - 1) / max(1, steps.count)
    if measures { sums.pointee = Sums() }
    steps.withUnsafeMutableBufferPointer { steps in
      guard let first = steps.baseAddress else { return }
      var done = 0
      while done < count {
        let n = min(length, count - done)
        var stream = 0, line = 0
        for i in 0..<steps.count {
          if scratches, done + n < count { fetch(done + n, share, &stream, &line) }
          carryOut(first + i, n)
        }
        at += n
        done += n
      }
    }
    if measures {
      if r.pointee.isDouble {
        sums.pointee.write(out, SIMD8<Double>.self)
      } else {
        sums.pointee.write(out, SIMD16<Float>.self)
      }
    }
    for k in streams.indices { streams[k].start += count &* streams[k].size }
  }

  /// Asks for the next `share` lines of the chunk that begins `ahead` elements after the start of the streams.
  @inline(__always)
  private func fetch(_ ahead: Int, _ share: Int, _ stream: inout Int, _ line: inout Int) {
    var left = share
    while left > 0, stream < streams.count {
      let s = streams[stream], lines = Program.chunk &* s.size / 64, part = min(left, lines - line)
      twi_prefetch_lines(s.start + (ahead &* s.size &+ line &* 64), Int64(part))
      left -= part
      line += part
      if line == lines { (stream, line) = (stream + 1, 0) }
    }
  }

  /// One step, for the n elements from `at` on.
  @inline(__always)
  private func carryOut(_ s: UnsafeMutablePointer<Step>, _ n: Int) {
    let size = r.pointee.size, whole = n & ~(EightBit.block - 1)
    let from = s.pointee.part == .rest ? whole : 0, m = s.pointee.part == .blocks ? whole : n - from
    let p = s.pointee.o.x
    if m > 0 {
      switch s.pointee.kind {
      case .kernel:
        s.pointee.o.count = m
        s.pointee.o.index = at + from
        s.pointee.kernel(
          s.pointee.rule, s.pointee.apply,
          from == 0 ? s.pointee.o : shifted(s.pointee.o, s.pointee.moving, from &* size))
        if s.pointee.part == .blocks { for k in 0..<s.pointee.o.codecCount { codecs[k].advance(m) } }
      case .measure:
        s.pointee.o.count = m
        s.pointee.o.index = at
        s.pointee.measure(s.pointee.rule, s.pointee.apply, s.pointee.phase, s.pointee.o, sums)
      case .copy: p.copyMemory(from: s.pointee.o.g, byteCount: m &* size)
      case .read: s.pointee.layout?.pointee.read(at, m, into: p, size: size, scale: s.pointee.apply.scale)
      case .write: s.pointee.layout?.pointee.write(at, m, from: p, size: size, rounding: s.pointee.rounding)
      case .adopt: s.pointee.layout?.pointee.adopt(at, m, p.assumingMemoryBound(to: Float.self))
      case .notice:
        let now = row(Row.update)  // the first step of a chunk: nothing lies in the rows yet
        eachMark(m) { start, count, then in
          r.pointee.takeMark(start, count, now)
          if memcmp(now, then, r.pointee.markBytes(count)) != 0 { written(r, start, count, now, then) }
        }
      case .mark: eachMark(m) { r.pointee.takeMark($0, $1, $2) }
      case .clear: s.pointee.layout?.pointee.clear(at, m)
      case .widen: s.pointee.store?.pointee.widen(r.pointee.count, at + from, m, p.assumingMemoryBound(to: Float.self))
      case .narrow:
        let values = p.assumingMemoryBound(to: Float.self)
        s.pointee.store?.pointee.narrow(r.pointee.count, at + from, m, values, s.pointee.rounding)
      }
    }
    advance(&s.pointee.o, s.pointee.moving, n &* size)
  }

  /// Calls `body` for each chunk that has a mark of the n elements from `at` on.
  @inline(__always)
  private func eachMark(_ n: Int, _ body: (_ start: Int, _ count: Int, UnsafeMutableRawPointer) -> Void) {
    var done = 0
    while done < n, let mark = r.pointee.mark(at &+ done) {
      let count = min(Program.chunk, n &- done)
      body(at &+ done, count, mark)
      done &+= count
    }
  }
}
