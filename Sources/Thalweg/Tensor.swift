internal import CThalweg
internal import ThalwegCore

/// Types that elements of a tensor may have in Swift. (bfloat16 has none: see `Tensor.DType.bf16`.)
public protocol TensorElement: BitwiseCopyable {
  /// How elements of this type are stored.
  static var dtype: Tensor.DType { get }
}
extension Float: TensorElement { public static var dtype: Tensor.DType { .f32 } }
extension Double: TensorElement { public static var dtype: Tensor.DType { .f64 } }
extension Float16: TensorElement { public static var dtype: Tensor.DType { .f16 } }
extension Int32: TensorElement { public static var dtype: Tensor.DType { .i32 } }
extension Int64: TensorElement { public static var dtype: Tensor.DType { .i64 } }
extension Int: TensorElement { public static var dtype: Tensor.DType { .i64 } }

/// A view of numbers in memory, row-major unless it has strides. Copies of a tensor show the same memory.
///
///     let w = try Tensor(zeros: [10, 64])                       // memory of its own, kept while a copy of it lives
///     let x = try Tensor([1, 2, 3, 4] as [Float], shape: [2, 2]) // a copy of the array
///     try Tensor.with(&array) { tensor in ... }                  // the array's own memory, within the braces
///     let v = try Tensor(buffer, shape: [64, 10], strides: [1, 64])  // memory that you keep alive
///
/// An optimizer keeps the tensors that are bound to it. What it steps in place must not be read or written by anybody
/// else meanwhile, as with any `inout` argument.
public struct Tensor: CustomStringConvertible {
  /// How elements are stored.
  public enum DType: Int32, Sendable, CaseIterable {
    case f32 = 1
    case f64, f16
    /// bfloat16. Swift has no type for it: its tensors come from `init(zeros:dtype:)` or raw buffers.
    case bf16
    /// Whole numbers: labels and indices, for inputs of objectives and solvers alone.
    case i32, i64

    /// Bytes of an element.
    public var size: Int {
      switch self {
      case .f16, .bf16: 2
      case .f32, .i32: 4
      case .f64, .i64: 8
      }
    }
  }

  /// What a tensor is in a model, where a method or `route` needs more than its shape.
  public enum Role: UInt32, Sendable, CaseIterable {
    case unknown = 0
    case weight, bias, norm, embedding, head
  }

  public let dtype: DType
  /// No axes: a single number.
  public let shape: [Int]
  /// Elements from one index of an axis to the next; nil: row-major without gaps.
  public let strides: [Int]?
  /// May be changed before the tensor is bound.
  public var role: Role
  /// Refused where it would be written.
  public private(set) var isReadOnly: Bool
  private let data: UnsafeMutableRawPointer?
  let lease: Lease?

  /// Every way to make a tensor ends here: nothing of it reaches beyond `bytes` bytes from `base` on.
  private init(
    _ base: UnsafeMutableRawPointer?, bytes: Int, _ dtype: DType, _ shape: [Int]?, strides: [Int]? = nil,
    offset: Int = 0, _ role: Role, readOnly: Bool, _ lease: Lease?
  ) throws(ThalwegError) {
    let room = bytes / dtype.size
    (self.dtype, self.role, self.lease, self.strides) = (dtype, role, lease, strides)
    (self.shape, isReadOnly) = (shape ?? [room], readOnly)
    let inside = offset >= 0 && offset <= room
    data = base.map { $0 + (inside ? offset : 0) * dtype.size }
    try checked { () throws(Failure) in
      guard inside else { throw Failure(Status.range, "`offset` must be 0 to \(room), got \(offset)") }
      guard bytes % dtype.size == 0 else {
        throw Failure(Status.count, "the buffer has \(bytes) bytes, which are no whole number of \(dtype) elements")
      }
      guard strides == nil || strides?.count == self.shape.count else {
        throw Failure(
          Status.shape, "`strides` must have \(self.shape.count) entries, one for each axis, got \(strides ?? [])")
      }
      let view = try flat("the tensor")
      let whole = strides == nil && offset == 0
      guard !whole || view.count == room else {
        throw Failure(
          Status.count, "shape \(self.shape) has \(view.count) elements, the buffer has \(room)")
      }
      guard view.count > 0, let base else { return }
      let (low, high) = view.extent, start = UInt(bitPattern: base)
      guard low >= start, high &- start <= UInt(bytes) else {
        throw Failure(
          Status.count,
          "shape \(self.shape) with strides \(view.strides) and offset \(offset) reaches out of a buffer of \(room) "
            + "elements")
      }
    }
  }

  // MARK: memory of its own

  /// Zeros, in memory of its own.
  ///
  /// Throws `.shape` for a negative axis or too many elements, `.memory` where they cannot be had.
  public init(zeros shape: [Int], dtype: DType = .f32, role: Role = .unknown) throws(ThalwegError) {
    let memory = try checked { () throws(Failure) in
      // of a shape only: the count is checked before there is memory
      let described = try Tensor.describe(nil, dtype, shape, nil, absent: true) { (t) throws(Failure) in
        try Tensor.flat(t, "the tensor")
      }
      return try Memory(described.count * dtype.size, .current)
    }
    try self.init(memory.base, bytes: memory.count, dtype, shape, role, readOnly: false, Lease(memory))
  }

  /// A copy of an array, in memory of its own; without a shape it has one axis.
  ///
  /// Throws `.count` where the shape has another number of elements.
  public init<E: TensorElement>(_ values: [E], shape: [Int]? = nil, role: Role = .unknown) throws(ThalwegError) {
    let memory = try checked { () throws(Failure) in
      try Memory(values.count * MemoryLayout<E>.stride, .current, zeroed: false)
    }
    values.withUnsafeBytes { if let p = $0.baseAddress { memory.base.copyMemory(from: p, byteCount: $0.count) } }
    try self.init(memory.base, bytes: memory.count, E.dtype, shape, role, readOnly: false, Lease(memory))
  }

  /// A single number in float64, a tensor without axes, as solvers take them.
  public init(number: Double) throws(ThalwegError) { try self.init([number], shape: []) }

  // MARK: memory of somebody else

  /// Memory that you keep alive, unmoved, for as long as the tensor or what it is bound to is in use.
  ///
  /// - Parameters:
  ///   - shape: one axis of all elements when nil.
  ///   - strides: elements from one index to the next, one for each axis; they may be negative.
  ///   - offset: of the element with the indices 0, in elements.
  ///
  /// Throws `.count` where the elements are not those of the buffer or reach out of it, `.shape`, `.range`, `.layout`.
  public init<E: TensorElement>(
    _ buffer: UnsafeMutableBufferPointer<E>, shape: [Int]? = nil, strides: [Int]? = nil, offset: Int = 0,
    role: Role = .unknown
  ) throws(ThalwegError) {
    try self.init(
      UnsafeMutableRawBufferPointer(buffer), dtype: E.dtype, shape: shape, strides: strides, offset: offset, role: role)
  }
  /// The same, read-only.
  public init<E: TensorElement>(
    _ buffer: UnsafeBufferPointer<E>, shape: [Int]? = nil, strides: [Int]? = nil, offset: Int = 0,
    role: Role = .unknown
  ) throws(ThalwegError) {
    try self.init(
      UnsafeRawBufferPointer(buffer), dtype: E.dtype, shape: shape, strides: strides, offset: offset, role: role)
  }
  /// The same over bytes, for element types that Swift does not have.
  public init(
    _ bytes: UnsafeMutableRawBufferPointer, dtype: DType, shape: [Int]? = nil, strides: [Int]? = nil, offset: Int = 0,
    role: Role = .unknown
  ) throws(ThalwegError) {
    try self.init(
      bytes.baseAddress, bytes: bytes.count, dtype, shape, strides: strides, offset: offset, role, readOnly: false,
      nil)
  }
  /// The same over bytes, read-only.
  public init(
    _ bytes: UnsafeRawBufferPointer, dtype: DType, shape: [Int]? = nil, strides: [Int]? = nil, offset: Int = 0,
    role: Role = .unknown
  ) throws(ThalwegError) {
    try self.init(
      UnsafeMutableRawPointer(mutating: bytes.baseAddress), bytes: bytes.count, dtype, shape, strides: strides,
      offset: offset, role, readOnly: true, nil)
  }

  /// The array's own memory, as a tensor that is valid until `body` returns: what uses it later throws `.sequence`. An
  /// optimizer that has a step under way then takes it back first.
  ///
  /// Several arrays: one call within the other. Throws what `body` throws; `.count` where the shape does not fit.
  public static func with<E: TensorElement, R>(
    _ array: inout [E], shape: [Int]? = nil, role: Role = .unknown, _ body: (Tensor) throws -> R
  ) throws -> R {
    try array.withUnsafeMutableBufferPointer { buffer in
      let lease = Lease()
      defer { lease.end() }
      return try body(
        Tensor(
          buffer.baseAddress.map { UnsafeMutableRawPointer($0) }, bytes: buffer.count * MemoryLayout<E>.stride, E.dtype,
          shape, role, readOnly: false, lease))
    }
  }

  /// Memory of the library, row-major, until a lease ends.
  init(_ t: tw_tensor, until lease: Lease) throws(ThalwegError) {
    let shape = (0..<Int(t.ndim)).map { Int(t.shape[$0]) }
    guard let dtype = DType(rawValue: t.dtype) else {
      throw ThalwegError(Failure(Status.internal, "an unknown dtype \(t.dtype)"))
    }
    try self.init(
      t.data, bytes: shape.reduce(dtype.size, &*), dtype, shape, .unknown,
      readOnly: t.flags & UInt32(TW_TENSOR_READ_ONLY) != 0, lease)
  }

  // MARK: elements

  /// The number of elements.
  public var count: Int { shape.reduce(1, &*) }

  /// The elements, row-major. Throws `.dtype` where they are of another type than E.
  public func values<E: TensorElement>(of type: E.Type = E.self) throws(ThalwegError) -> [E] {
    try checked { () throws(Failure) in
      let view = try elements(E.self)
      try Memory.ask(view.count * MemoryLayout<E>.stride)
      let layout = Layout(view)
      defer { layout.release() }
      return [E](unsafeUninitializedCapacity: view.count) { out, count in
        count = view.count
        guard count > 0, let to = out.baseAddress else { return }
        let from = layout.data.assumingMemoryBound(to: E.self)
        if layout.dense { return to.initialize(from: from, count: count) }
        layout.forEachRun(0, count) { offset, stride, first, n in
          for i in 0..<n { (to + first + i).initialize(to: from[offset + i * stride]) }
        }
      }
    }
  }

  /// The elements of any dtype as doubles, row-major.
  public func doubles() throws(ThalwegError) -> [Double] {
    switch dtype {
    case .i32: return try values(of: Int32.self).map(Double.init)
    case .i64: return try values(of: Int64.self).map(Double.init)
    default: break
    }
    return try checked { () throws(Failure) in
      let view = try flat("the tensor")
      try Memory.ask(view.count * MemoryLayout<Double>.stride)
      let layout = Layout(view)
      defer { layout.release() }
      return [Double](unsafeUninitializedCapacity: view.count) { out, count in
        count = view.count
        if count > 0, let to = out.baseAddress { layout.read(0, count, to, scale: 1) }
      }
    }
  }

  /// Writes all elements, row-major. Throws `.dtype`, `.count`, and `.layout` where the tensor is read-only.
  public func assign<E: TensorElement>(_ values: [E]) throws(ThalwegError) {
    try checked { () throws(Failure) in
      let view = try elements(E.self)
      guard !isReadOnly else { throw Failure(Status.layout, "the tensor is read-only") }
      guard values.count == view.count else {
        throw Failure(Status.count, "shape \(shape) has \(view.count) elements, got \(values.count)")
      }
      guard view.count > 0 else { return }
      let layout = Layout(view), to = layout.data.assumingMemoryBound(to: E.self)
      defer { layout.release() }
      values.withUnsafeBufferPointer { from in
        if layout.dense, let from = from.baseAddress { return to.update(from: from, count: view.count) }
        layout.forEachRun(0, view.count) { offset, stride, first, n in
          for i in 0..<n { to[offset + i * stride] = from[first + i] }
        }
      }
    }
  }

  /// Calls `body` with the elements, row-major and without gaps, to read and write them in place.
  ///
  /// Throws `.dtype` where they are of another type than E, `.layout` where there are gaps or the tensor is read-only.
  public func withUnsafeMutableBufferPointer<E: TensorElement, R>(
    of type: E.Type = E.self, _ body: (UnsafeMutableBufferPointer<E>) throws -> R
  ) throws -> R {
    guard !isReadOnly else { throw ThalwegError(Failure(Status.layout, "the tensor is read-only")) }
    return try body(try gapless(E.self))
  }
  /// The same to read alone.
  public func withUnsafeBufferPointer<E: TensorElement, R>(
    of type: E.Type = E.self, _ body: (UnsafeBufferPointer<E>) throws -> R
  ) throws -> R {
    try body(UnsafeBufferPointer(try gapless(E.self)))
  }
  private func gapless<E: TensorElement>(_: E.Type) throws(ThalwegError) -> UnsafeMutableBufferPointer<E> {
    try checked { () throws(Failure) in
      let view = try elements(E.self)
      guard view.dense else { throw Failure(Status.layout, "the tensor has gaps: strides \(view.strides)") }
      return UnsafeMutableBufferPointer(start: view.data.assumingMemoryBound(to: E.self), count: view.count)
    }
  }
  private func elements<E: TensorElement>(_: E.Type) throws(Failure) -> View {
    guard E.dtype == dtype, MemoryLayout<E>.stride == dtype.size else {
      throw Failure(Status.dtype, "the tensor holds \(dtype) elements, asked for \(E.self)")
    }
    return try flat("the tensor")
  }

  /// The same memory, which the library must not write.
  public var readOnly: Tensor {
    var t = self
    t.isReadOnly = true
    return t
  }

  public var description: String { "Tensor(\(dtype), \(shape)\(isReadOnly ? ", read-only" : ""))" }
}

// MARK: what the engine sees

extension Tensor {
  /// Calls `body` with the description that the C interface has.
  fileprivate static func describe<R>(
    _ data: UnsafeMutableRawPointer?, _ dtype: DType, _ shape: [Int], _ strides: [Int]?, role: Role = .unknown,
    readOnly: Bool = false, absent: Bool = false, _ body: (tw_tensor) throws(Failure) -> R
  ) throws(Failure) -> R {
    let flags = (readOnly ? UInt32(TW_TENSOR_READ_ONLY) : 0) | (absent ? UInt32(TW_TENSOR_ABSENT) : 0)
    let axes = (shape + (strides ?? [])).map(Int64.init)
    return try axes.withUnsafeBufferPointer { (p) throws(Failure) in
      try body(
        tw_tensor(
          data: data, dtype: dtype.rawValue, ndim: Int32(clamping: shape.count), shape: p.baseAddress,
          strides: strides == nil ? nil : p.baseAddress.map { $0 + shape.count }, flags: flags, role: role.rawValue,
          reserved: (0, 0, 0)))
    }
  }
  private func described<R>(_ what: String, _ body: (tw_tensor) throws(Failure) -> R) throws(Failure) -> R {
    guard !(lease?.isOver ?? false) else {
      throw Failure(Status.sequence, "\(what): the scope or request that its memory belongs to has ended")
    }
    return try Tensor.describe(data, dtype, shape, strides, role: role, readOnly: isReadOnly, body)
  }

  /// A checked view of real numbers.
  func view(_ what: String) throws(Failure) -> View {
    try refuseWholeNumbers(what)
    return try described(what) { (t) throws(Failure) in try View(t, what) }
  }
  private func refuseWholeNumbers(_ what: String) throws(Failure) {
    guard dtype != .i32, dtype != .i64 else {
      throw Failure(Status.dtype, "\(what) must hold f32, f64, f16 or bf16 elements, got \(dtype)")
    }
  }
  /// The same of one argument of a call.
  func argument(_ what: String, writable: Bool) throws(Failure) -> View {
    try refuseWholeNumbers(what)
    return try described(what) { (t) throws(Failure) in try View(argument: t, what, writable: writable) }
  }
  /// A checked view of real or whole numbers.
  func operand(_ what: String) throws(Failure) -> Operand {
    try described(what) { (t) throws(Failure) in try Tensor.operand(t, what) }
  }
  private static func operand(_ t: tw_tensor, _ what: String) throws(Failure) -> Operand {
    guard let operand = try Operand(t, what) else { throw Failure(Status.internal, "\(what) is absent") }
    return operand
  }
  /// Where the elements are, whatever they mean.
  private func flat(_ what: String) throws(Failure) -> View {
    try described(what) { (t) throws(Failure) in try Tensor.operand(t, what).view }
  }
  fileprivate static func flat(_ t: tw_tensor, _ what: String) throws(Failure) -> View {
    var t = t
    // one dtype is as good as another where only the shape counts
    t.dtype = DType.f32.rawValue
    return try View(t, what)
  }

  /// Stands for a gradient or an input that is not there.
  static func absent() throws(Failure) -> View {
    try describe(nil, .f32, [], nil, absent: true) { (t) throws(Failure) in try View(t, "an absent tensor") }
  }

  /// Keeps an optimizer informed of the end of the memory, where it may end.
  func lend(to optimizer: Optimizer) {
    if let lease, lease.mayEnd { lease.add(optimizer) }
  }
}

/// Named tensors in the order of a declaration; nil for those that are not there.
func operands(_ named: [String: Tensor], _ names: [String], of sentence: String) throws(Failure) -> [Operand?] {
  try refuseStrangers(named, names, of: sentence)
  var list: [Operand?] = []
  for name in names { list.append(try named[name].map { (t) throws(Failure) in try t.operand("`\(name)`") }) }
  return list
}

func refuseStrangers(_ named: [String: Tensor], _ names: [String], of sentence: String) throws(Failure) {
  guard let stranger = named.keys.sorted().first(where: { !names.contains($0) }) else { return }
  throw Failure(
    Status.name,
    "`\(sentence)` has no tensor `\(stranger)`" + suggestion(stranger, names) + "; it has: "
      + names.joined(separator: ", "))
}
