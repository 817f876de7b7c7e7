import Thalweg
