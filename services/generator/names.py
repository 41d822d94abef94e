"""Names of merchants and of people. Any likeness is chance: they are common words put together."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spearhead.schema import CATEGORIES, FIRST_NAME

_SURNAMES: Final = (
    "Abbott", "Adler", "Ahern", "Alvarez", "Archer", "Ashby", "Avery", "Baird", "Barlow", "Becker", "Bellamy",
    "Bishop", "Bolton", "Bowen", "Brandt", "Briggs", "Calder", "Carver", "Castillo", "Chen", "Clarke", "Cobb",
    "Corbin", "Crane", "Dalton", "Davila", "Delgado", "Doyle", "Drake", "Duarte", "Eaton", "Ellery", "Emerson",
    "Farrow", "Fletcher", "Flores", "Foster", "Frost", "Gallo", "Garner", "Gibbs", "Granger", "Greer", "Hadley",
    "Hale", "Hansen", "Harlow", "Hayes", "Hobbs", "Holt", "Ibarra", "Ingram", "Irving", "Jansen", "Jarvis", "Jensen",
    "Kane", "Keller", "Kendrick", "Kim", "Kirby", "Lambert", "Larkin", "Lopez", "Lowell", "Maddox", "Marsh", "Mercer",
    "Meyer", "Monroe", "Morrow", "Nash", "Navarro", "Nguyen", "Nolan", "Norris", "Oakley", "Ortega", "Osborn",
    "Palmer", "Park", "Parrish", "Patel", "Pierce", "Porter", "Quinn", "Ramsey", "Reyes", "Rhodes", "Rossi", "Rowan",
    "Sawyer", "Schmidt", "Sharp", "Silva", "Singh", "Sloan", "Sterling", "Stone", "Sutton", "Tanner", "Thorne",
    "Torres", "Tucker", "Vance", "Vargas", "Vaughn", "Wade", "Walsh", "Webb", "Weber", "Whitaker", "Wilder", "Wolfe",
    "Yates", "York", "Young", "Zamora", "Ziegler",
)  # fmt: skip
_TRADES: Final = {
    "entertainment": ("Cinemas", "Bowling", "Arcade", "Theatre", "Tickets", "Billiards"),
    "food_dining": ("Grill", "Diner", "Pizza", "Coffee", "Kitchen", "Bistro"),
    "gas_transport": ("Fuel", "Gas", "Parking", "Cabs", "Transit", "Auto Service"),
    "grocery_net": ("Groceries Online", "Fresh Box", "Pantry Direct", "Meal Kits", "Farm Delivery", "Organics Online"),
    "grocery_pos": ("Market", "Foods", "Supermarket", "Grocers", "Produce", "Butchers"),
    "health_fitness": ("Pharmacy", "Gym", "Dental", "Clinic", "Yoga", "Optical"),
    "home": ("Hardware", "Furniture", "Garden Centre", "Lighting", "Flooring", "Appliances"),
    "kids_pets": ("Toys", "Pet Supply", "Veterinary", "Day Care", "Baby Store", "Playground"),
    "misc_net": ("Apps", "Downloads", "Subscriptions", "Web Services", "Digital Gifts", "Online Courses"),
    "misc_pos": ("Variety", "Newsstand", "Laundry", "Print Shop", "Locksmiths", "Thrift Store"),
    "personal_care": ("Salon", "Barbers", "Spa", "Nails", "Cosmetics", "Massage"),
    "shopping_net": ("Electronics Online", "Outlet Direct", "Fashion Online", "Web Store", "Shoes Online", "Deals"),
    "shopping_pos": ("Department Store", "Clothing", "Electronics", "Jewelers", "Sporting Goods", "Outfitters"),
    "travel": ("Airlines", "Hotels", "Car Rental", "Travel Agency", "Cruises", "Resorts"),
}
_FIRST: Final = (
    "James", "Mary", "Robert", "Patricia", "John", "Jennifer", "Michael", "Linda", "David", "Elizabeth", "William",
    "Barbara", "Richard", "Susan", "Joseph", "Jessica", "Thomas", "Sarah", "Christopher", "Karen", "Charles", "Lisa",
    "Daniel", "Nancy", "Matthew", "Betty", "Anthony", "Sandra", "Mark", "Margaret", "Donald", "Ashley", "Steven",
    "Kimberly", "Andrew", "Emily", "Paul", "Donna", "Joshua", "Michelle", "Kenneth", "Carol", "Kevin", "Amanda",
    "Brian", "Melissa", "Timothy", "Deborah", "Ronald", "Stephanie", "George", "Rebecca", "Jason", "Sharon", "Edward",
    "Laura", "Jeffrey", "Cynthia", "Ryan", "Amy", "Jacob", "Kathleen", "Nicholas", "Angela", "Gary", "Dorothy", "Eric",
    "Shirley", "Jonathan", "Emma", "Stephen", "Brenda", "Larry", "Nicole", "Justin", "Pamela", "Scott", "Samantha",
    "Brandon", "Anna", "Benjamin", "Katherine", "Samuel", "Christine", "Gregory", "Debra", "Alexander", "Rachel",
    "Patrick", "Olivia", "Frank", "Carolyn", "Raymond", "Maria", "Jack", "Janet", "Dennis", "Heather", "Jerry", "Diane",
)  # fmt: skip
# Surnames by first letter, per thousand in the United States, roughly.
_INITIALS: Final = (
    35, 88, 73, 47, 19, 35, 52, 73, 4, 30, 32, 47, 95, 18, 14, 49, 2, 55, 95, 34, 3, 15, 62, 1, 5, 5,
)  # fmt: skip

FIRST_NAMES: Final = len(_FIRST)


def merchant_names(merchants: int) -> pa.StringArray:
    """The names of merchants 0..merchants-1, all different. Merchant m is of category m % 14."""
    number = np.arange(merchants)
    category, rank = number % len(CATEGORIES), number // len(CATEGORIES)
    people, trades = len(_SURNAMES), len(_TRADES[CATEGORIES[0]])
    surname = pa.array(_SURNAMES).take(pa.array((rank + 29 * category) % people))
    trade = pa.array([word for name in CATEGORIES for word in _TRADES[name]]).take(
        pa.array(category * trades + (rank // people + rank % people) % trades)
    )
    again = rank // (people * trades)  # the same words once more: "Hale Gas 2"
    names = pc.binary_join_element_wise(surname, trade, " ")
    if not again.any():
        return names
    numbered = pc.binary_join_element_wise(names, pa.array(again + 1).cast(pa.string()), " ")
    return pc.if_else(pa.array(again == 0), names, numbered)


def first_names() -> pa.Array:
    """The given names that ``first`` is an index of."""
    return pa.array(_FIRST, FIRST_NAME.value_type)


def initial_weights() -> np.ndarray:
    """How common surnames with each letter are."""
    return np.array(_INITIALS, np.float64)
