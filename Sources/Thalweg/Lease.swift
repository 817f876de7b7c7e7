internal import ThalwegCore

/// The memory behind tensors: their own, or lent until a scope or a request ends.
final class Lease {
  private struct Guest { weak var optimizer: Optimizer? }
  private let memory: Memory?
  private var guests: [Guest] = []
  /// Nobody may touch the memory any more.
  private(set) var isOver = false

  init(_ memory: Memory? = nil) { self.memory = memory }

  var mayEnd: Bool { memory == nil }

  /// Tells an optimizer when the memory goes away.
  func add(_ optimizer: Optimizer) {
    guests.removeAll { $0.optimizer == nil }
    if !guests.contains(where: { $0.optimizer === optimizer }) { guests.append(Guest(optimizer: optimizer)) }
  }

  /// Steps that are under way end first, so that the parameters are what they were before.
  func end() {
    for guest in guests { guest.optimizer?.breakOff() }
    (isOver, guests) = (true, [])
  }
}
