"""Which components and connections of a network implement a behaviour?"""
