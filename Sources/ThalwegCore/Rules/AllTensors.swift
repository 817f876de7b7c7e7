/// The runner as a stage sees it that looks at all its tensors.
public protocol AllTensorsHost {
  var count: Int { get }
  func hyper(_ k: Int) -> Hyper
  func numbers(_ k: Int) -> UnsafeMutablePointer<Double>
  func shape(_ k: Int) -> Shape
  /// The memory of the parameters and of the stage's slots, in the compute type.
  func memory(_ k: Int) -> (list: [UnsafeMutableRawPointer], isDouble: Bool, shape: Shape)
  var hasRanks: Bool { get }
  func addRanks(_ values: inout [Double])
}

/// All tensors of a stage behind the move that take part in the step, moved already, before the stage changes one.
/// There may be more on other ranks, which make the same calls of `add` then.
public struct AllTensors {
  private let host: any AllTensorsHost
  /// In the order in which they came; those without elements are left out.
  public private(set) var indices: [Int]
  public init(_ host: any AllTensorsHost) { (self.host, indices) = (host, Array(0..<host.count)) }

  /// Those alone whose hyper-parameters are as `included` says.
  public func only(_ included: (Hyper) -> Bool) -> AllTensors {
    var some = self
    some.indices.removeAll { !included(hyper($0)) }
    return some
  }
  public func hyper(_ k: Int) -> Hyper { host.hyper(k) }
  /// The stage's numbers of tensor k (`scalars`): what is written there is for `apply` to read.
  public func numbers(_ k: Int) -> UnsafeMutablePointer<Double> { host.numbers(k) }
  public func shape(_ k: Int) -> Shape { host.shape(k) }
  /// Looks at the parameters of tensor k, first of the list, and at the stage's slots, which are kept exactly.
  public func look<W: SlotWork>(_ k: Int, _ work: W) throws(Failure) -> W.Result {
    let (list, isDouble, shape) = host.memory(k)
    if list.isEmpty { throw Failure(Status.internal, "a tensor without memory") }
    if isDouble { return try work(list.map { $0.assumingMemoryBound(to: Double.self) }, shape) }
    return try work(list.map { $0.assumingMemoryBound(to: Float.self) }, shape)
  }
  /// There may be more on other ranks.
  public var hasRanks: Bool { host.hasRanks }
  /// Adds to numbers those of the other ranks.
  public func add(_ values: inout [Double]) { host.addRanks(&values) }
}
