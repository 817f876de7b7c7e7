import Thalweg
import XCTest

final class SwiftAPITests: XCTestCase {}
