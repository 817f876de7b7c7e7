import CThalweg
import ThalwegCore

/// A solver at work: one run at a time, from its inputs over requests to its results.
package final class SolverObject {
  /// A request that waits for its answer: what it shows, in the order of its declaration.
  fileprivate struct Waiting {
    var kind: Int
    var places: [Place]
    var then: Int
    var fields: Fields
  }
  fileprivate enum State {
    case ready(Int)
    case waiting(Waiting)
    case done(Ending)
    /// An error ended the run.
    case broken
  }
  /// A run: its memory and where it stands.
  fileprivate struct Run {
    var store: DriverStore
    var state = State.ready(0)
    /// Counts the samples that were asked for.
    var tag: UInt64 = 0
  }

  package let method: Method
  private let hyper: Hyper
  private let kernels: DriverKernels
  private var run: Run?

  package init(_ text: String) throws(Failure) {
    let (e, h) = try single(text, .solver)
    guard case .solver(let make) = e.component else { throw Failure(Status.internal, "not a solver") }
    do throws(Failure) { kernels = try make(h) } catch {
      throw error.of(e.method.name)
    }
    (method, hyper) = (e.method, h)
  }
  private init(_ other: SolverObject) { (method, hyper, kernels) = (other.method, other.hyper, other.kernels) }

  package var sentence: String { hyper.sentence(method.name) }
  private func named<R>(_ body: () throws(Failure) -> R) throws(Failure) -> R {
    do { return try body() } catch {
      let own = error.message.hasPrefix(method.name + ":")
      throw Failure(Int(error.status), own ? error.message : "\(method.name): \(error.message)")
    }
  }

  // MARK: a run

  /// Copies the inputs, which stand in the order of the declaration, and starts anew.
  package func begin(_ tensors: [Operand?]) throws(Failure) {
    let list = try named { () throws(Failure) in try accept(tensors) }
    var sizes = Sizes()
    try named { () throws(Failure) in for (input, operand) in list { try sizes.match(input, operand.view.shape) } }
    let numbers = list.filter(\.0.axes.isEmpty), tensors = list.filter { !$0.0.axes.isEmpty }
    let reals = tensors.filter { !$0.0.integer }
    let isDouble = reals.isEmpty || reals.contains { $0.1.view.dtype == .f64 }
    let store = try room(isDouble, sizes, tensors.map { ($0.0, $0.1.view.shape) })
    for input in method.inputs where input.axes.isEmpty && !input.result { store.number(input.name)?.pointee = .nan }
    for (input, operand) in numbers {
      let l = Layout(operand.view)
      defer { l.release() }
      if let p = store.number(input.name) { l.read(0, 1, p, scale: 1) }
    }
    try named { () throws(Failure) in
      for (input, operand) in tensors { if let e = store.entry(input.name) { try fill(e, input, operand, isDouble) } }
    }
    (run, turned) = (Run(store: store), [:])
  }

  /// The inputs that are given, checked one by one.
  private func accept(_ tensors: [Operand?]) throws(Failure) -> [(Input, Operand)] {
    let declared = method.inputs
    guard tensors.count <= declared.count else {
      throw Failure(Status.count, "it takes at most \(declared.count) tensors, got \(tensors.count)")
    }
    var list: [(Input, Operand)] = []
    for (i, input) in declared.enumerated() {
      guard i < tensors.count, let operand = tensors[i] else {
        if input.optional { continue }
        throw Failure(Status.needs, "it needs `\(input.name)` \(input.shape): \(input.meaning)")
      }
      guard !input.result else { throw Failure(Status.argument, "`\(input.name)` is a result, no input") }
      guard input.integer || operand.integers == nil else {
        throw Failure(Status.dtype, "`\(input.name)` must hold real numbers; got whole ones")
      }
      list.append((input, operand))
    }
    return list
  }

  /// The memory of a run with inputs of these shapes.
  private func room(_ isDouble: Bool, _ known: Sizes, _ inputs: [(Input, [Int])]) throws(Failure) -> DriverStore {
    var sizes = known
    let own = try named { () throws(Failure) in try kernels.axes(known) }
    for (axis, n) in own { sizes.set(axis, n) }
    let fields = method.asks.flatMap { $0.given + $0.wanted }
    for axis in (method.vectors + fields).flatMap(\.axes) where sizes[axis] == 0 && hyper.has(axis) {
      sizes.set(axis, hyper.integer(axis))
    }
    let store = try DriverStore(isDouble: isDouble, sizes: sizes, numbers: method.numbers)
    return try named { () throws(Failure) in
      for (input, shape) in inputs {
        try store.add(input.name, input.integer ? .wholeInput : .input, input.turned(shape))
      }
      for vector in method.vectors {
        guard let shape = sizes.shape(vector) else {
          if vector.result { continue }  // it comes from an input that was left out
          throw Failure(Status.needs, "the axes \(vector.shape) of `\(vector.name)` are not known from the inputs")
        }
        try store.add(vector.name, .vector, shape)
      }
      return store
    }
  }

  /// Copies an input, whatever its layout, in one pass.
  private func fill(_ e: DriverStore.Entry, _ input: Input, _ operand: Operand, _ isDouble: Bool) throws(Failure) {
    if input.integer {
      let whole = try Inputs<Double>([(input, operand)], Sizes(), ObjectiveMemory([]))
      return e.memory.base.copyMemory(from: try whole.integers(input.name), byteCount: e.count * 8)
    }
    let l = Layout(input.isTurned ? operand.view.turned : operand.view)
    defer { l.release() }
    l.read(0, e.count, into: e.memory.base, size: isDouble ? 8 : 4, scale: 1)
  }

  /// Takes the answer to the waiting request, if there is one, and goes on to the next, or to the end. Throws
  /// TW_ERROR_SEQUENCE without a run, and after an error.
  package func next() throws(Failure) {
    guard var run else { throw Failure(Status.sequence, "\(method.name): begin a run first") }
    var phase: Int, begins = false
    switch run.state {
    case .ready(let first): (phase, begins) = (first, true)
    case .waiting(let w):
      phase = w.then
      if !method.asks[w.kind].takesNonfinite, !isFinite(run, w) {
        self.run?.state = .done(.nonfinite)
        return
      }
    case .done: return
    case .broken: throw Failure(Status.sequence, "\(method.name): an error ended this run; begin another")
    }
    self.run?.state = .broken
    try named { () throws(Failure) in
      while true {
        let verdict =
          run.store.isDouble
          ? try kernels.advance64(phase, DriverIO<Double>(run.store))
          : try kernels.advance32(phase, DriverIO<Float>(run.store))
        if let name = run.store.undeclared { throw Failure(Status.internal, "`\(name)` is not declared") }
        switch verdict {
        case .go(let then):
          phase = then
          continue
        case .done(let outcome):
          run.state = .done(outcome == .converged && hasNaN(run.store) ? .nonfinite : outcome)
        case .question(let q, let then):
          if q.fresh || run.tag == 0 { run.tag &+= 1 }
          run.state = .waiting(try waiting(run.store, q, then))
        }
        break
      }
    }
    // what a driver says of its inputs goes first
    if begins, !hasFiniteInputs(run.store) { run.state = .done(.nonfinite) }
    self.run = run
  }
  /// A result that is no number is none; what overflowed on the way there is not said to have converged.
  private func hasNaN(_ store: DriverStore) -> Bool {
    method.inputs.contains { $0.result && !$0.takesNonfinite && store.hasNaN($0.name) }
  }
  private func hasFiniteInputs(_ store: DriverStore) -> Bool {
    store.entries.allSatisfy { e in
      guard e.kind == .input, method.inputs.contains(where: { $0.name == e.name && !$0.takesNonfinite }) else {
        return true
      }
      return isFinite(e.memory.base, e.count, store.isDouble)
    }
  }
  private func isFinite(_ p: UnsafeMutableRawPointer, _ count: Int, _ isDouble: Bool) -> Bool {
    isDouble
      ? Flat.isFinite(p.assumingMemoryBound(to: Double.self), count)
      : Flat.isFinite(p.assumingMemoryBound(to: Float.self), count)
  }

  /// The request with its tensors, checked against its declaration.
  private func waiting(_ store: DriverStore, _ q: Question, _ then: Int) throws(Failure) -> Waiting {
    guard let k = method.asks.firstIndex(where: { $0.name == q.kind }) else {
      throw Failure(Status.internal, "`\(q.kind)` is not declared as a request")
    }
    let ask = method.asks[k], results = method.inputs.filter(\.result).map(\.name)
    // an answer that is refused leaves the results as they were
    let wanted = q.places.suffix(ask.wanted.filter { !$0.axes.isEmpty }.count).map(\.name)
    if let name = wanted.first(where: { results.contains($0) }) {
      throw Failure(Status.internal, "the request `\(q.kind)` would write the result `\(name)`")
    }
    let numbers = ask.wanted.filter { $0.axes.isEmpty }
    for n in numbers { store.number(n.name)?.pointee = .nan }
    return Waiting(kind: k, places: q.places, then: then, fields: try Fields(store, ask, q.places))
  }

  private func isFinite(_ run: Run, _ w: Waiting) -> Bool {
    let ask = method.asks[w.kind]
    for (i, input) in ask.wanted.enumerated() {
      let t = w.fields.tensors[ask.given.count + i]
      guard let p = t.data else { continue }
      if input.axes.isEmpty {
        guard p.load(as: Double.self).isFinite else { return false }
      } else if !isFinite(p, w.fields.count(ask.given.count + i), run.store.isDouble) {
        return false
      }
    }
    return true
  }

  // MARK: what a host sees

  /// The request that waits: the number of its kind, its sample, and its tensors, the given ones first. They are valid
  /// until the next call of `begin`, `next` or `load`.
  package struct Shown {
    package let kind: Int
    package let tag: UInt64
    package let tensors: UnsafeMutablePointer<tw_tensor>
    package let given: Int, wanted: Int
  }
  package var request: Shown? {
    guard let run, case .waiting(let w) = run.state else { return nil }
    let ask = method.asks[w.kind]
    return Shown(
      kind: w.kind, tag: run.tag, tensors: w.fields.tensors, given: ask.given.count, wanted: ask.wanted.count)
  }
  package var ending: Ending {
    if let run, case .done(let outcome) = run.state { return outcome }
    return .running
  }

  private var shown: Fields?
  /// Inputs of this run as they were given, where the driver has them turned.
  private var turned: [String: Fields] = [:]
  /// A tensor by name: what the waiting request wants, else a result, an input or what is kept, else what the request
  /// shows. What is not wanted is read-only.
  package func tensor(_ name: String) throws(Failure) -> tw_tensor {
    guard let run else { throw Failure(Status.sequence, "\(method.name): begin a run first") }
    var asked: Int?
    if case .waiting(let w) = run.state {
      asked = w.fields.names.firstIndex(of: name)
      if let i = asked, i >= method.asks[w.kind].given.count { return w.fields.tensors[i] }
    }
    if asked == nil, method.inputs.contains(where: { $0.isTurned && $0.name == name }), let e = run.store.entry(name) {
      if let known = turned[name] { return known.tensors[0] }
      let fields = try Fields(turned: e, run.store.isDouble)
      turned[name] = fields
      return fields.tensors[0]
    }
    let fields = Fields(all: run.store)
    guard let i = fields.names.firstIndex(of: name) else {
      if case .waiting(let w) = run.state, let asked { return w.fields.tensors[asked] }
      throw Failure(Status.name, "\(method.name) has no tensor `\(name)`" + suggestion(name, fields.names))
    }
    shown = fields
    return fields.tensors[i]
  }
  package func number(_ name: String) throws(Failure) -> Double {
    guard let run else { throw Failure(Status.sequence, "\(method.name): begin a run first") }
    guard let p = run.store.number(name) else {
      throw Failure(Status.name, "\(method.name) has no number `\(name)`" + suggestion(name, run.store.numberNames))
    }
    return p.pointee
  }

  // MARK: copies

  package func copy() throws(Failure) -> SolverObject {
    let other = SolverObject(self)
    guard let run else { return other }
    let store = try DriverStore(isDouble: run.store.isDouble, sizes: run.store.sizes, numbers: run.store.numberNames)
    store.numbers.update(from: run.store.numbers, count: run.store.numberNames.count)
    for e in run.store.entries {
      try store.add(e.name, e.kind, e.shape).memory.base.copyMemory(from: e.memory.base, byteCount: e.memory.count)
    }
    var copied = Run(store: store, state: run.state, tag: run.tag)
    if case .waiting(let w) = run.state {
      copied.state = .waiting(
        Waiting(kind: w.kind, places: w.places, then: w.then, fields: try Fields(store, method.asks[w.kind], w.places)))
    }
    other.run = copied
    return other
  }
}

/// Tensors of a store as the C interface shows them.
private final class Fields {
  let names: [String]
  let tensors: UnsafeMutablePointer<tw_tensor>
  private let shapes: [[Int]]
  private let dimensions: UnsafeMutablePointer<Int64>
  private var own: Memory?

  private init(_ list: [(name: String, data: UnsafeMutableRawPointer, dtype: Int32, shape: [Int], readOnly: Bool)]) {
    (names, shapes) = (list.map(\.name), list.map(\.shape))
    tensors = .allocate(capacity: max(1, list.count))
    dimensions = .allocate(capacity: max(1, shapes.reduce(0) { $0 + $1.count }))
    var at = dimensions
    for (i, f) in list.enumerated() {
      for (k, d) in f.shape.enumerated() { at[k] = Int64(d) }
      (tensors + i).initialize(
        to: tw_tensor(
          data: f.data, dtype: f.dtype, ndim: Int32(f.shape.count), shape: UnsafePointer(at), strides: nil,
          flags: f.readOnly ? UInt32(TW_TENSOR_READ_ONLY) : 0, role: 0, reserved: (0, 0, 0)))
      at += f.shape.count
    }
  }
  deinit {
    tensors.deallocate()
    dimensions.deallocate()
  }
  func count(_ i: Int) -> Int { shapes[i].reduce(1, &*) }

  /// The entries of a request.
  convenience init(_ store: DriverStore, _ ask: RequestKind, _ places: [Place]) throws(Failure) {
    let real = Int32(store.isDouble ? TW_F64 : TW_F32), size = store.isDouble ? 8 : 4
    var list: [(name: String, data: UnsafeMutableRawPointer, dtype: Int32, shape: [Int], readOnly: Bool)] = []
    var rest = places[...]
    for (i, field) in (ask.given + ask.wanted).enumerated() {
      let readOnly = i < ask.given.count
      if field.axes.isEmpty {
        guard let p = store.number(field.name) else { throw Failure(Status.internal, "no number `\(field.name)`") }
        list.append((field.name, UnsafeMutableRawPointer(p), Int32(TW_F64), [], readOnly))
        continue
      }
      guard let place = rest.popFirst(), let e = store.entry(place.name), e.kind != .wholeInput,
        let shape = store.sizes.shape(field)
      else { throw Failure(Status.internal, "`\(field.name)` of the request `\(ask.name)` has no vector") }
      let count = shape.reduce(1, &*)
      guard count == place.count, place.offset >= 0, place.offset <= e.count - count else {
        throw Failure(Status.internal, "`\(place.name)` does not fit `\(field.name)` of the request `\(ask.name)`")
      }
      list.append((field.name, e.memory.base + place.offset * size, real, shape, readOnly))
      // what the host fills is nothing else that it sees
      let others = places.indices.filter { $0 != rest.startIndex - 1 && !readOnly }
      guard others.allSatisfy({ !place.meets(places[$0]) }) else {
        throw Failure(Status.internal, "`\(field.name)` of the request `\(ask.name)` shares its memory with another")
      }
    }
    guard rest.isEmpty else { throw Failure(Status.internal, "too many vectors for the request `\(ask.name)`") }
    self.init(list)
  }

  /// An input that a driver has turned, as it was given: a copy.
  convenience init(turned e: DriverStore.Entry, _ isDouble: Bool) throws(Failure) {
    let size = isDouble ? 8 : 4, shape = Array(e.shape.reversed()), columns = shape.last ?? 1
    let copy = try Memory(e.memory.count, .current, zeroed: false)
    for k in 0..<e.count {
      let (row, column) = (k / columns, k % columns)
      (copy.base + k * size).copyMemory(
        from: e.memory.base + (column * (e.count / columns) + row) * size, byteCount: size)
    }
    self.init([(e.name, copy.base, Int32(isDouble ? TW_F64 : TW_F32), shape, true)])
    own = copy
  }

  /// Everything that there is, read-only.
  convenience init(all store: DriverStore) {
    let real = Int32(store.isDouble ? TW_F64 : TW_F32)
    var list: [(name: String, data: UnsafeMutableRawPointer, dtype: Int32, shape: [Int], readOnly: Bool)] = []
    for e in store.entries {
      list.append((e.name, e.memory.base, e.kind == .wholeInput ? Int32(TW_I64) : real, e.shape, true))
    }
    for (i, name) in store.numberNames.enumerated() {
      list.append((name, UnsafeMutableRawPointer(store.numbers + i), Int32(TW_F64), [], true))
    }
    self.init(list)
  }
}

// MARK: saving

/// The state of a run, in the frame of a checkpoint: the sentence, where the run stands, its numbers, and its tensors
/// with their shapes. A run can be taken up in a solver of the same sentence, without its inputs.
extension SolverObject {
  private static let sentenceKey = "solver/sentence", stateKey = "solver/state", numbersKey = "solver/numbers"
  private static let placesKey = "solver/places", placeNamesKey = "solver/place_names"

  private func writer() throws(Failure) -> Safetensors.Writer {
    let out = Safetensors.Writer(.current)
    try out.add(SolverObject.sentenceKey, text: sentence)
    guard let run else { return out }
    // kind of state, phase, kind of request, outcome, and the tag in two halves: doubles hold 53 bits
    var state = [0.0, 0, 0, 0, Double(run.tag >> 32), Double(run.tag & 0xffff_ffff)]
    var places: [Place] = []
    switch run.state {
    case .ready(let phase): state.replaceSubrange(0..<2, with: [1, Double(phase)])
    case .waiting(let w):
      state.replaceSubrange(0..<3, with: [2, Double(w.then), Double(w.kind)])
      places = w.places
    case .done(let outcome): (state[0], state[3]) = (3, Double(outcome.rawValue))
    case .broken: throw Failure(Status.sequence, "\(method.name): an error ended this run; there is nothing to save")
    }
    try out.add(SolverObject.stateKey, state)
    try out.add(
      SolverObject.numbersKey, Array(UnsafeBufferPointer(start: run.store.numbers, count: method.numbers.count)))
    try out.add(SolverObject.placesKey, places.flatMap { [Double($0.offset), Double($0.count)] })
    try out.add(SolverObject.placeNamesKey, text: places.map(\.name).joined(separator: " "))
    for e in run.store.entries {
      let dtype = e.kind == .wholeInput ? "I64" : run.store.isDouble ? "F64" : "F32"
      out.add("tensor/" + e.name, dtype, e.shape, e.memory, e.memory.count)
    }
    return out
  }

  package func saveSize() throws(Failure) -> Int { try writer().size }
  package func save(
    _ check: (Int) throws(Failure) -> Void, _ put: (UnsafeRawBufferPointer) throws(Failure) -> Void
  ) throws(Failure) {
    let out = try writer()
    try check(out.size)
    try out.write(put)
  }

  package func load(_ data: UnsafeRawBufferPointer) throws(Failure) {
    let file = try Safetensors(data)
    guard let text = file.text(SolverObject.sentenceKey) else {
      throw Failure(Status.mismatch, "what was saved is no run of a solver")
    }
    guard text == sentence else {
      throw Failure(Status.mismatch, "what was saved is of `\(text)`, this solver is `\(sentence)`")
    }
    guard let state = file.numbers(SolverObject.stateKey) else {
      run = nil  // it was saved before its first run
      return
    }
    guard state.count == 6, state.allSatisfy({ $0 >= 0 && $0 < 0x1p32 && $0 == $0.rounded() }) else {
      throw Safetensors.damaged("its state makes no sense")
    }
    let store = try stored(file)
    var loaded = Run(store: store, tag: UInt64(state[4]) << 32 | UInt64(state[5]))
    switch state[0] {
    case 1: loaded.state = .ready(Int(state[1]))
    case 2:
      guard Int(state[2]) < method.asks.count, let flat = file.numbers(SolverObject.placesKey),
        let names = file.text(SolverObject.placeNamesKey)?.split(separator: " "), flat.count == 2 * names.count,
        flat.allSatisfy({ $0 >= 0 && $0 < 0x1p53 })
      else { throw Safetensors.damaged("its request makes no sense") }
      let places = names.enumerated().map { Place(String($1), Int(flat[2 * $0]), Int(flat[2 * $0 + 1])) }
      let fields: Fields
      do throws(Failure) { fields = try Fields(store, method.asks[Int(state[2])], places) } catch {
        throw Safetensors.damaged("its request makes no sense")
      }
      loaded.state = .waiting(Waiting(kind: Int(state[2]), places: places, then: Int(state[1]), fields: fields))
    case 3:
      guard let outcome = Ending(rawValue: Int(state[3])), outcome != .running else {
        throw Safetensors.damaged("its outcome makes no sense")
      }
      loaded.state = .done(outcome)
    default: throw Safetensors.damaged("its state makes no sense")
    }
    (run, turned) = (loaded, [:])
  }

  /// The memory of a saved run, whose shapes must be those that its inputs give.
  private func stored(_ file: Safetensors) throws(Failure) -> DriverStore {
    var sizes = Sizes(), inputs: [(Input, [Int])] = []
    for input in method.inputs where !input.result && !input.axes.isEmpty {
      guard let e = file.found[Exact("tensor/" + input.name)] else {
        guard input.optional else { throw Safetensors.damaged("`\(input.name)` is missing") }
        continue
      }
      let shape = input.turned(e.shape)
      do throws(Failure) { try sizes.match(input, shape) } catch {
        throw Safetensors.damaged(error.message)
      }
      inputs.append((input, shape))
    }
    let reals = inputs.filter { !$0.0.integer }
    let isDouble = reals.isEmpty || reals.contains { file.found[Exact("tensor/" + $0.0.name)]?.dtype == "F64" }
    let store = try room(isDouble, sizes, inputs)
    for e in store.entries {
      let dtype = e.kind == .wholeInput ? "I64" : isDouble ? "F64" : "F32"
      guard let found = file.found[Exact("tensor/" + e.name)], found.dtype == dtype, found.shape == e.shape,
        found.bytes == e.memory.count
      else { throw Safetensors.damaged("`\(e.name)` is missing, or of another shape") }
      file.copy(found, to: e.memory.base, found.bytes)
    }
    guard let numbers = file.numbers(SolverObject.numbersKey), numbers.count == store.numberNames.count else {
      throw Safetensors.damaged("its numbers are missing")
    }
    for (i, x) in numbers.enumerated() { store.numbers[i] = x }
    return store
  }
}
